//! Answers over HTTP, from engines and peers, read up to a bound.

use reqwest::Response;

/// An answer is longer than its reader takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answer has more than {0} bytes")]
pub struct TooLarge(pub usize);

/// An answer's body, of at most `limit` bytes.
///
/// # Errors
/// [`TooLarge`], or [`reqwest::Error`] when the connection breaks or is too slow.
pub async fn body(mut answer: Response, limit: usize) -> anyhow::Result<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        anyhow::ensure!(body.len() + chunk.len() <= limit, TooLarge(limit));
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn what_is_too_long_and_what_breaks_off_can_be_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let router = Router::new().fallback(|| async { "12345678" });
        let serving = tokio::spawn(async move { axum::serve(listener, router).await });
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let ask = async |limit| body(client.get(&url).send().await.unwrap(), limit).await;
        assert_eq!(ask(8).await.unwrap(), b"12345678");
        assert_eq!(ask(7).await.unwrap_err().downcast_ref(), Some(&TooLarge(7)));
        serving.abort();

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let breaking = tokio::spawn(async move {
            let (mut call, _) = listener.accept().await.unwrap();
            // What is unread would break off the answer's head as well.
            assert!(call.read(&mut [0; 4096]).await.unwrap() > 0);
            call.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n1234").await.unwrap();
        });
        let error = body(client.get(&url).send().await.unwrap(), 8).await.unwrap_err();
        assert!(error.is::<reqwest::Error>(), "{error:#}");
        breaking.await.unwrap();
    }
}
