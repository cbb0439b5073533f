//! A small HTTP client.

use std::time::Duration;

use anyhow::{Context, Result};
use reqwest::header::HeaderMap;
use reqwest::{Body, Method};
use serde_json::Value;

/// Sends requests over kept connections; never through a proxy that the environment names.
#[derive(Clone, Debug)]
pub struct Client(reqwest::Client);

impl Client {
    /// A client whose requests may take 60 s each, all of the response included.
    ///
    /// # Errors
    /// If the system gives it no random numbers or the like.
    pub fn new() -> Result<Self> {
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60)).build();
        Ok(Self(client.context("cannot make an HTTP client")?))
    }

    /// GETs `url`.
    ///
    /// # Errors
    /// If no whole response came back. Any status is a response.
    pub async fn get(&self, url: &str) -> Result<Reply> {
        self.send(Method::GET, url, &[], Body::default()).await
    }

    /// POSTs JSON with more headers.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn post(&self, url: &str, headers: &[(&str, &str)], body: &Value) -> Result<Reply> {
        let headers: Vec<_> = [("content-type", "application/json")].iter().chain(headers).copied().collect();
        self.send(Method::POST, url, &headers, body.to_string().into()).await
    }

    /// Sends any body with any headers.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn send(&self, method: Method, url: &str, headers: &[(&str, &str)], body: Body) -> Result<Reply> {
        let mut request = self.0.request(method, url).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await.with_context(|| format!("no response from {url}"))?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = response.text().await.with_context(|| format!("{url} broke off its response"))?;
        Ok(Reply { status, headers, body })
    }
}

/// A whole response.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body as text.
    pub body: String,
}

impl Reply {
    /// One header's value, if it is there and text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// If it is none, with the status and the body.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.body).with_context(|| format!("{}, not JSON: {}", self.status, self.body))
    }
}
