//! A client of the OpenAI API that streams and measures.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// How long one answer may take, all of it.
const PATIENCE: Duration = Duration::from_secs(120);
/// How much of an error's body is shown, in characters.
const SHOWN: usize = 300;

/// A whole streamed answer, and when it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// From just before the request was sent until the first chunk with generated text was here.
    pub ttft: Duration,
    /// From just before the request was sent until the end of the stream.
    pub total: Duration,
    /// The generated text.
    pub text: String,
    /// Tokens of the prompt, as the engine counts them.
    pub prompt_tokens: u64,
    /// Prompt tokens that the engine found in its cache, as it reports them.
    pub cached_tokens: u64,
    /// Tokens generated.
    pub completion_tokens: u64,
}

/// Sends requests over kept connections; never through a proxy that the environment names. Cheap to clone.
#[derive(Clone, Debug)]
pub struct StreamClient(reqwest::Client);

impl StreamClient {
    /// A client without connections yet.
    ///
    /// # Errors
    /// If the system gives it no random numbers or the like.
    pub fn new() -> Result<Self> {
        // Without this a small request waits for the acknowledgement of the one before on its connection.
        let client = reqwest::Client::builder().no_proxy().tcp_nodelay(true).timeout(PATIENCE).build();
        Ok(Self(client.context("cannot make an HTTP client")?))
    }

    /// POSTs a completion or chat completion to `url` and reads the answer to its end. `body` is asked for as a stream
    /// with usage, whatever it says itself.
    ///
    /// # Errors
    /// If the status is not 200, or the stream breaks off, reports an error or ends without usage.
    pub async fn complete(&self, url: &str, mut body: Value) -> Result<Answer> {
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        let request = self.0.post(url).header("content-type", "application/json").body(body.to_string());
        let sent = Instant::now();
        let mut response = request.send().await.with_context(|| format!("no response from {url}"))?;
        let status = response.status();
        if status != 200 {
            let body = response.text().await.unwrap_or_default();
            bail!("{url} answered {status}: {}", body.chars().take(SHOWN).collect::<String>());
        }
        let mut stream = Stream::default();
        while let Some(bytes) = response.chunk().await.with_context(|| format!("{url} broke off its answer"))? {
            stream.feed(&bytes, sent.elapsed())?;
        }
        stream.end(sent.elapsed()).with_context(|| format!("the answer from {url} is not whole"))
    }
}

/// A stream of server-sent events, as far as it has come.
#[derive(Default)]
struct Stream {
    /// The line that is not at its end yet.
    rest: Vec<u8>,
    ttft: Option<Duration>,
    text: String,
    usage: Option<Value>,
    done: bool,
}

impl Stream {
    /// Takes in bytes that were here `at` after the request was sent.
    fn feed(&mut self, bytes: &[u8], at: Duration) -> Result<()> {
        self.rest.extend_from_slice(bytes);
        while let Some(end) = self.rest.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let Some(data) = line.strip_prefix(b"data:") else { continue };
            match data.trim_ascii() {
                b"[DONE]" => self.done = true,
                data => self.event(data, at)?,
            }
        }
        Ok(())
    }

    fn event(&mut self, data: &[u8], at: Duration) -> Result<()> {
        let event: Value = serde_json::from_slice(data).with_context(|| {
            format!("the stream holds an event that is not JSON: {}", String::from_utf8_lossy(data))
        })?;
        if let Some(error) = event.get("error") {
            bail!("the stream reports an error: {error}");
        }
        // A chunk that only opens the assistant's message has no text yet.
        let texts = ["/choices/0/delta/content", "/choices/0/delta/reasoning_content", "/choices/0/text"];
        let piece = texts.iter().find_map(|place| event.pointer(place)?.as_str()).unwrap_or_default();
        if !piece.is_empty() {
            self.ttft.get_or_insert(at);
            self.text.push_str(piece);
        }
        if let Some(usage) = event.get("usage").filter(|usage| usage.is_object()) {
            self.usage = Some(usage.clone());
        }
        Ok(())
    }

    fn end(self, total: Duration) -> Result<Answer> {
        if !self.done {
            bail!("the stream ended without [DONE]");
        }
        let ttft = self.ttft.context("the stream brought no text")?;
        let usage = self.usage.context("the stream brought no usage")?;
        let count = |place: &str| {
            let count = usage.pointer(place).and_then(Value::as_u64);
            count.with_context(|| format!("usage has no {place}: {usage}; an engine must report cached tokens (vLLM: --enable-prompt-tokens-details)"))
        };
        Ok(Answer {
            ttft,
            total,
            text: self.text,
            prompt_tokens: count("/prompt_tokens")?,
            cached_tokens: count("/prompt_tokens_details/cached_tokens")?,
            completion_tokens: count("/completion_tokens")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::{self, Config};

    const WHOLE: &str = concat!(
        "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\r\n\r\n",
        ": a comment\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\":\"caf\u{e9}\"}}],\"usage\":null}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":1,",
        "\"prompt_tokens_details\":{\"cached_tokens\":4}}}\n\ndata: [DONE]\n\n",
    );

    fn body(prompt: &str, max_tokens: u32) -> Value {
        json!({"model": "tiny", "prompt": prompt, "max_tokens": max_tokens})
    }

    #[test]
    fn a_stream_cut_into_single_bytes_reads_the_same_and_its_first_text_sets_the_ttft() {
        let mut stream = Stream::default();
        for (at, byte) in WHOLE.bytes().enumerate() {
            stream.feed(&[byte], Duration::from_micros(at as u64)).unwrap();
        }
        let answer = stream.end(Duration::from_secs(1)).unwrap();
        let first_text_ends = WHOLE.find("null}\n").unwrap() + "null}".len();
        assert_eq!(answer.ttft, Duration::from_micros(first_text_ends as u64));
        assert_eq!(answer.text, "caf\u{e9}");
        assert_eq!((answer.prompt_tokens, answer.cached_tokens, answer.completion_tokens), (9, 4, 1));
    }

    #[test]
    fn a_stream_that_breaks_off_or_reports_an_error_is_no_answer() {
        for cut in [WHOLE.find("data: [DONE]").unwrap(), WHOLE.find("data: {\"choices\":[],").unwrap()] {
            let mut stream = Stream::default();
            stream.feed(&WHOLE.as_bytes()[..cut], Duration::ZERO).unwrap();
            assert!(stream.end(Duration::ZERO).is_err());
        }
        let error = Stream::default().feed(b"data: {\"error\":\"out of luck\"}\n", Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains("out of luck"), "{error}");
    }

    #[tokio::test]
    async fn ttft_ends_with_the_prefill_and_leaves_out_the_decoding() {
        let engine = sim::start(Config { prefill_overhead_ms: 150.0, decode_ms_per_token: 20.0, ..Config::instant() });
        let engine = engine.unwrap();
        let url = format!("{}/v1/completions", engine.url());
        let answer = StreamClient::new().unwrap().complete(&url, body("a prompt", 10)).await.unwrap();
        assert!(answer.ttft >= Duration::from_millis(149), "{answer:?}");
        // Nine tokens follow the first; the engine may run 20 ms ahead to catch up.
        assert!(answer.total - answer.ttft >= Duration::from_millis(140), "{answer:?}");
        assert_eq!(answer.completion_tokens, 10);
    }

    #[tokio::test]
    async fn a_refusal_is_an_error_with_status_and_body() {
        let engine = sim::start(Config::instant()).unwrap();
        engine.control(|control| control.fail_next = 1);
        let url = format!("{}/v1/completions", engine.url());
        let error = StreamClient::new().unwrap().complete(&url, body("a prompt", 1)).await.unwrap_err().to_string();
        assert!(error.contains("503") && error.contains("failing on request"), "{error}");
    }
}
