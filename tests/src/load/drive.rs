//! Asking: a closed loop with a fixed number of requests in flight.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{Answer, StreamClient, Workload};

/// A request that was sent, and what came of it.
#[derive(Debug)]
pub struct Record {
    /// The whole conversation that was sent.
    pub messages: Vec<Value>,
    /// The answer, or why there is none.
    pub answer: Result<Answer>,
}

/// Sends the whole workload to the chat completions of `gateway` (a URL without path) and waits for every answer.
///
/// Closed loop: `concurrency` requests are in flight at any time, and the next is sent when one ends. It is the first
/// in order whose user waits for no answer; answers become part of their user's conversation. Texts are asked for at
/// temperature 0, so that engines with equal seeds answer alike whatever the routing. `done` is called after each
/// request, with how many have ended.
///
/// Returns what happened in the order of sending, and the time from the first request to the last answer.
///
/// # Errors
/// If a request's task panics. A request that fails is a [`Record`] like others; its user goes on without an answer.
pub async fn drive(
    client: &StreamClient,
    gateway: &str,
    model: &str,
    workload: &Workload,
    concurrency: usize,
    mut done: impl FnMut(usize),
) -> Result<(Vec<Record>, Duration)> {
    let url = format!("{gateway}/v1/chat/completions");
    let mut conversations: Vec<Vec<Value>> = vec![Vec::new(); workload.users];
    let mut due: Vec<usize> = (0..workload.steps.len()).rev().collect();
    let mut busy: HashSet<usize> = HashSet::new();
    let mut records: Vec<Option<Record>> = Vec::with_capacity(workload.steps.len());
    let mut in_flight = JoinSet::new();
    let start = Instant::now();
    let mut ended = 0;
    loop {
        while in_flight.len() < concurrency {
            let next = due.iter().rposition(|&step| !busy.contains(&workload.steps[step].user));
            let Some(step) = next.map(|at| &workload.steps[due.remove(at)]) else { break };
            let conversation = &mut conversations[step.user];
            if let Some(system) = &step.opens {
                *conversation = vec![json!({"role": "system", "content": system.as_ref()})];
            }
            conversation.push(json!({"role": "user", "content": step.message}));
            let messages = conversation.clone();
            let (client, url, sent, user) = (client.clone(), url.clone(), records.len(), step.user);
            let body = json!({"model": model, "messages": messages, "max_tokens": step.max_tokens, "temperature": 0.0});
            busy.insert(user);
            records.push(None);
            in_flight.spawn(async move {
                let answer = client.complete(&url, body).await;
                (sent, user, Record { messages, answer })
            });
        }
        let Some(finished) = in_flight.join_next().await else { break };
        let (sent, user, record) = finished.context("a request's task panicked")?;
        if let Ok(answer) = &record.answer {
            conversations[user].push(json!({"role": "assistant", "content": answer.text}));
        }
        busy.remove(&user);
        records[sent] = Some(record);
        ended += 1;
        done(ended);
    }
    Ok((records.into_iter().flatten().collect(), start.elapsed()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::WorkloadOptions;
    use crate::sim::{self, Config};

    fn workload() -> Workload {
        Workload::new(WorkloadOptions { tenants: 3, users_per_tenant: 2, requests: 40, seed: 3 })
    }

    #[tokio::test]
    async fn every_step_is_sent_once_with_its_conversation_so_far() {
        let engine = sim::start(Config { seed: Some(1), ..Config::instant() }).unwrap();
        let (client, workload) = (StreamClient::new().unwrap(), workload());
        let mut ends = Vec::new();
        let (records, _) = drive(&client, &engine.url(), "tiny", &workload, 4, |count| ends.push(count)).await.unwrap();
        assert_eq!(ends, (1..=40).collect::<Vec<_>>());
        assert_eq!(engine.stats().finished, 40);
        let mut asked: Vec<&str> =
            records.iter().map(|r| r.messages.last().unwrap()["content"].as_str().unwrap()).collect();
        let mut due: Vec<&str> = workload.steps.iter().map(|step| step.message.as_str()).collect();
        asked.sort_unstable();
        due.sort_unstable();
        assert_eq!(asked, due);
        for record in &records {
            let roles: Vec<&str> = record.messages.iter().map(|m| m["role"].as_str().unwrap()).collect();
            assert_eq!(roles[0], "system");
            assert!(
                roles[1..].chunks(2).all(|pair| pair[0] == "user" && pair.get(1).is_none_or(|r| *r == "assistant"))
            );
        }
    }

    #[tokio::test]
    async fn no_more_requests_are_in_flight_than_asked_for_and_no_user_waits_for_two() {
        let engine = sim::start(Config { decode_ms_per_token: 1.0, ..Config::instant() }).unwrap();
        let (client, workload) = (StreamClient::new().unwrap(), workload());
        let url = engine.url();
        let load = drive(&client, &url, "tiny", &workload, 50, |_| ());
        let mut most = 0;
        let watch = async {
            loop {
                most = most.max(engine.stats().in_flight);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            load = load => assert_eq!(load.unwrap().0.len(), 40),
            () = watch => {}
        }
        assert!((2..=workload.users).contains(&most), "{most} of {} users at once", workload.users);
    }

    #[tokio::test]
    async fn a_failed_request_is_recorded_and_the_rest_goes_on() {
        let engine = sim::start(Config::instant()).unwrap();
        engine.control(|control| control.fail_next = 3);
        let client = StreamClient::new().unwrap();
        let (records, _) = drive(&client, &engine.url(), "tiny", &workload(), 1, |_| ()).await.unwrap();
        let failed: Vec<bool> = records.iter().map(|record| record.answer.is_err()).collect();
        assert_eq!(failed, (0..40).map(|sent| sent < 3).collect::<Vec<_>>());
    }
}
