//! The two ends of the proxy, as cheap as HTTP/1.1 over kept connections can be: a closed loop of requests written in
//! advance, and engines that answer at once.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::future::try_join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const JSON: &str =
    r#"{"object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"yes"}}]}"#;
/// What is read at once: most of a large body.
const CHUNK: usize = 256 * 1024;

/// A backend that reads each request to its end and answers with its own port in `x-engine`. It ends with the runtime.
pub async fn backend() -> Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    let (port, length) = (address.port(), JSON.len());
    let head =
        format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-engine: {port}\r\ncontent-length: {length}");
    let answer: &'static [u8] = format!("{head}\r\n\r\n{JSON}").into_bytes().leak();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // A connection that breaks is the proxy's business.
            tokio::spawn(async move { serve(stream, answer).await.ok() });
        }
    });
    Ok(address)
}

async fn serve(mut stream: TcpStream, answer: &[u8]) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut message = Message::new();
    while message.skip(&mut stream).await?.is_some() {
        stream.write_all(answer).await?;
    }
    Ok(())
}

/// Reads HTTP messages that state their length, and throws their bodies away.
struct Message {
    buffer: Vec<u8>,
}

impl Message {
    fn new() -> Self {
        Self { buffer: vec![0; CHUNK] }
    }

    /// The head of the next message, once its body has passed; `None` where the other end has closed.
    async fn skip(&mut self, stream: &mut TcpStream) -> Result<Option<&str>> {
        let (mut filled, mut searched) = (0, 0);
        let head = loop {
            let read = stream.read(&mut self.buffer[filled..]).await?;
            if read == 0 {
                ensure!(filled == 0, "a message was broken off");
                return Ok(None);
            }
            filled += read;
            if let Some(at) = self.buffer[searched..filled].windows(4).position(|w| w == b"\r\n\r\n") {
                break searched + at + 4;
            }
            searched = filled.saturating_sub(3);
            ensure!(filled < 16 * 1024, "a head without end");
        };
        // The body overwrites what has come of it: only its length matters, and only the head is kept.
        let mut left =
            (head + content_length(&self.buffer[..head])?).checked_sub(filled).context("two messages at once")?;
        while left > 0 {
            let read = stream.read(&mut self.buffer[head..]).await?;
            ensure!(read > 0, "a message was broken off");
            left = left.checked_sub(read).context("two messages at once")?;
        }
        Ok(Some(std::str::from_utf8(&self.buffer[..head])?))
    }
}

fn content_length(head: &[u8]) -> Result<usize> {
    let head = std::str::from_utf8(head)?;
    let field = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let (_, value) = field.with_context(|| format!("a message without length: {head}"))?;
    Ok(value.trim().parse()?)
}

/// A request as it goes over the wire.
pub fn request(body: &str) -> Vec<u8> {
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json";
    format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// What a closed loop came to.
pub struct Figures {
    /// Requests answered with 200; any other answer ends the bench.
    pub requests: usize,
    /// From the first byte sent to the last received, in order of length.
    pub latencies: Vec<Duration>,
}

impl Figures {
    /// The latency that this share of requests did not exceed, in microseconds.
    pub fn percentile_us(&self, share: f64) -> f64 {
        let at = ((self.latencies.len() as f64 * share) as usize).min(self.latencies.len().saturating_sub(1));
        self.latencies.get(at).map_or(0.0, |latency| latency.as_secs_f64() * 1e6)
    }
}

/// Sends the requests in turn over each of `connections` connections, one at a time on each, until `time` is up.
pub async fn drive(address: SocketAddr, requests: &[Vec<u8>], connections: usize, time: Duration) -> Result<Figures> {
    let end = Instant::now() + time;
    // Neighbouring connections begin far apart, so that they do not ask for the same thing at the same time.
    let starts = (0..connections).map(|number| number * requests.len() / connections);
    let loops = starts.map(|first| async move {
        let mut stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (mut message, mut latencies) = (Message::new(), Vec::new());
        for request in requests.iter().cycle().skip(first) {
            let sent = Instant::now();
            if sent >= end {
                break;
            }
            stream.write_all(request).await?;
            match message.skip(&mut stream).await? {
                Some(head) if head.starts_with("HTTP/1.1 200 ") => latencies.push(sent.elapsed()),
                Some(head) => bail!("not answered with 200: {head}"),
                None => bail!("the proxy closed a connection"),
            }
        }
        Ok(latencies)
    });
    let mut latencies = try_join_all(loops).await?.concat();
    latencies.sort_unstable();
    Ok(Figures { requests: latencies.len(), latencies })
}
