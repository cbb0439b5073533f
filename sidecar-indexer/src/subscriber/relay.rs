//! Between an engine and the ZeroMQ library: what a peer claims is looked at before its bytes are passed on.
//!
//! The library (up to 0.7 at least) reserves as much memory as a frame's header says, and keeps all frames of a message
//! until the last one has come: a few bytes from a peer could end the indexer. So it never speaks to a peer itself, only
//! to a relay, over a connection of this machine to itself.

use super::stranger::{self, FIRST, FREE, Stranger};
use crate::app::App;
use anyhow::{Context, Result};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::JoinHandle;
use zeromq::Endpoint;

/// Most bytes of a message. A step of an engine with a million tokens, each in five bytes, and a hash for each block,
/// told of for each of eight cache groups, would have 50 MB; usual ones have some KB.
pub const MESSAGE: u64 = 64 << 20;
/// Most frames of a message. Engines send two to four.
const FRAMES: usize = 64;
/// What a peer begins with.
const GREETING: u64 = 64;
/// A peer that says nothing for so long is asked whether it is there, and given up after three more of the second: one
/// that died, or a connection that something in between forgot, says no goodbye.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(5));
/// Bytes passed on at a time.
const CHUNK: usize = 64 << 10;

/// Why a peer is hung up on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("it announces a message of {0} bytes; {MESSAGE} are taken at most")]
    TooLarge(u64),
    #[error("a message of it has more than {FRAMES} frames")]
    TooManyFrames,
    #[error("a command before its first message has {0} bytes; {FREE} are taken at most")]
    CommandTooLarge(u64),
    #[error("its first message, which is to say who it is, has {0} bytes; {FIRST} are taken at most")]
    FirstTooLarge(u64),
    #[error("the first message that it began is not there after {} s", stranger::PATIENCE.as_secs())]
    TooSlow,
}

/// Somebody to talk to.
pub(super) trait Peer: AsyncRead + AsyncWrite + Send + Unpin {}
impl<P: AsyncRead + AsyncWrite + Send + Unpin> Peer for P {}

/// Connects to `tcp://HOST:PORT` or `ipc://PATH`.
pub(super) async fn dial(url: &str, patience: Duration) -> Result<Box<dyn Peer>> {
    let connect = async {
        Ok::<Box<dyn Peer>, anyhow::Error>(match url.parse()? {
            Endpoint::Tcp(host, port) => {
                let stream = TcpStream::connect((host.to_string().as_str(), port)).await?;
                keep(&stream)?;
                Box::new(stream)
            }
            Endpoint::Ipc(path) => Box::new(UnixStream::connect(path.context("it names no path")?).await?),
            _ => anyhow::bail!("it is neither tcp:// nor ipc://"),
        })
    };
    tokio::time::timeout(patience, connect).await.context("it does not answer")?
}

/// Sets up a connection to a peer.
pub(super) fn keep(stream: &TcpStream) -> std::io::Result<()> {
    let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE.0).with_interval(KEEPALIVE.1).with_retries(3);
    socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive)?;
    stream.set_nodelay(true)
}

/// Passes on what a peer and the library say to each other, until one of them hangs up or the peer claims too much.
/// Dropping it hangs up on both.
pub(super) struct Relay {
    /// Where the library finds the peer.
    pub(super) url: String,
    task: Option<JoinHandle<Option<Refused>>>,
}

impl Relay {
    /// `name`: the peer's, for the log. `stranger`: who it is has yet to be seen.
    pub(super) async fn start(
        app: &Arc<App>,
        name: String,
        peer: impl Peer + 'static,
        stranger: Option<Stranger>,
    ) -> std::io::Result<Self> {
        let inside = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let url = format!("tcp://{}", inside.local_addr()?);
        let app = app.clone();
        let task = tokio::spawn(async move {
            let refused = pass(peer, inside, stranger).await.ok().flatten();
            if let Some(error) = refused {
                app.metrics.refused();
                tracing::warn!(peer = name, %error, "hung up on a peer that is no engine, or out of its mind");
            }
            refused
        });
        Ok(Self { url, task: Some(task) })
    }

    /// Why the peer was hung up on; waits for ever if it was not.
    pub(super) async fn refused(&mut self) -> Refused {
        if let Some(task) = &mut self.task {
            let ended = task.await;
            self.task = None;
            if let Ok(Some(refused)) = ended {
                return refused;
            }
        }
        std::future::pending().await
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.iter().for_each(JoinHandle::abort);
    }
}

async fn pass(
    peer: impl Peer,
    inside: TcpListener,
    mut stranger: Option<Stranger>,
) -> std::io::Result<Option<Refused>> {
    let (library, _) = inside.accept().await?;
    drop(inside);
    library.set_nodelay(true)?;
    let (mut said, mut answers) = tokio::io::split(peer);
    let (mut replies, mut heard) = library.into_split();
    let checked = async {
        let mut claims = Claims { stranger: stranger.is_some(), ..Claims::default() };
        let mut chunk = vec![0; CHUNK];
        loop {
            let reading = said.read(&mut chunk);
            let read = match &stranger {
                Some(stranger) => match stranger.in_time(reading).await {
                    Ok(read) => read?,
                    Err(late) => return Ok(Some(late)),
                },
                None => reading.await?,
            };
            let mut bytes = chunk.get(..read).unwrap_or_default();
            if bytes.is_empty() {
                return Ok(None);
            }
            while !bytes.is_empty() {
                let taken = match claims.check(bytes) {
                    Ok(taken) => taken,
                    Err(refused) => return Ok(Some(refused)),
                };
                if let Some(stranger) = &mut stranger {
                    stranger.admit(claims.most, claims.begun()).await;
                }
                let (now, later) = bytes.split_at_checked(taken).unwrap_or((bytes, &[]));
                heard.write_all(now).await?;
                bytes = later;
                if claims.introduced
                    && let Some(stranger) = stranger.take()
                {
                    if !stranger.known().await {
                        return Ok(None);
                    }
                    claims.stranger = false;
                }
            }
        }
    };
    tokio::select! {
        ended = checked => ended,
        ended = tokio::io::copy(&mut replies, &mut answers) => ended.map(|_| None),
    }
}

/// What a peer has said so far (ZMTP 3).
#[derive(Debug)]
struct Claims {
    state: State,
    /// Bytes and frames of the message that has begun.
    bytes: u64,
    frames: usize,
    /// The frame under way is its message's last.
    last: bool,
    /// The most bytes that a message or command of it had.
    most: u64,
    /// Nobody knows who it is.
    stranger: bool,
    /// Its first message is there.
    introduced: bool,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// So many bytes of a greeting or a body are to come.
    Body(u64),
    Flags,
    /// So many bytes of a frame's length are to come.
    Length {
        flags: u8,
        left: u8,
        length: u64,
    },
}

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

impl Default for Claims {
    fn default() -> Self {
        Self {
            state: State::Body(GREETING),
            bytes: 0,
            frames: 0,
            last: false,
            most: 0,
            stranger: false,
            introduced: false,
        }
    }
}

impl Claims {
    /// Takes what comes next, of a stranger up to the end of its first message; says how many bytes that is.
    fn check(&mut self, all: &[u8]) -> Result<usize, Refused> {
        let mut bytes = all;
        while let Some((first, rest)) = bytes.split_first() {
            if self.stranger && self.introduced {
                break;
            }
            self.state = match self.state {
                State::Body(left) => {
                    let skip = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                    bytes = bytes.get(skip..).unwrap_or_default();
                    match left - skip as u64 {
                        0 => self.ended(),
                        left => State::Body(left),
                    }
                }
                State::Flags => {
                    bytes = rest;
                    State::Length { flags: *first, left: if first & LONG == 0 { 1 } else { 8 }, length: 0 }
                }
                State::Length { flags, left, length } => {
                    bytes = rest;
                    let length = length << 8 | u64::from(*first);
                    match left {
                        1 => self.frame(flags, length)?,
                        _ => State::Length { flags, left: left - 1, length },
                    }
                }
            };
        }
        Ok(all.len() - bytes.len())
    }

    /// A frame, or the greeting, is there.
    fn ended(&mut self) -> State {
        self.introduced |= std::mem::take(&mut self.last);
        State::Flags
    }

    /// Whether more must come before anything is whole.
    fn begun(&self) -> bool {
        self.frames > 0 || !matches!(self.state, State::Flags)
    }

    /// A frame begins.
    fn frame(&mut self, flags: u8, length: u64) -> Result<State, Refused> {
        let before = if flags & COMMAND == 0 { self.bytes } else { 0 };
        let bytes = before.saturating_add(length);
        if bytes > MESSAGE {
            return Err(Refused::TooLarge(bytes));
        }
        if self.stranger && flags & COMMAND == 0 && bytes > FIRST {
            return Err(Refused::FirstTooLarge(bytes));
        }
        // A place for something large is for a message, which must end in time: commands may be followed by silence.
        if self.stranger && flags & COMMAND != 0 && bytes > FREE {
            return Err(Refused::CommandTooLarge(bytes));
        }
        self.most = self.most.max(bytes);
        if flags & COMMAND == 0 {
            self.last = flags & MORE == 0;
            (self.bytes, self.frames) = if flags & MORE == 0 { (0, 0) } else { (bytes, self.frames + 1) };
            if self.frames >= FRAMES {
                return Err(Refused::TooManyFrames);
            }
        }
        Ok(if length == 0 { self.ended() } else { State::Body(length) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::DuplexStream;
    use tokio::sync::{Semaphore, oneshot};

    /// What a peer says that has greeted and then sends these frames: flags, length, how much of it is there.
    fn said(frames: &[(u8, u64, usize)]) -> Vec<u8> {
        let mut bytes = vec![0xFF; GREETING as usize];
        for (flags, length, there) in frames {
            bytes.push(*flags);
            match flags & LONG {
                0 => bytes.push(*length as u8),
                _ => bytes.extend(length.to_be_bytes()),
            }
            bytes.extend(vec![0xAB; *there]);
        }
        bytes
    }

    /// The same whole and byte by byte.
    fn check(frames: &[(u8, u64, usize)]) -> Result<(), Refused> {
        let bytes = said(frames);
        let (whole, mut claims) = (Claims::default().check(&bytes).map(drop), Claims::default());
        assert_eq!(bytes.chunks(1).try_for_each(|byte| claims.check(byte).map(drop)), whole);
        whole
    }

    #[test]
    fn what_engines_say_is_passed_on() {
        let ready = (COMMAND, 30, 30);
        let message = [(MORE, 0, 0), (MORE, 8, 8), (LONG, 3000, 3000)];
        let all: Vec<_> = [ready].into_iter().chain(message.into_iter().cycle().take(300)).collect();
        assert_eq!(check(&all), Ok(()));
        assert_eq!(check(&[ready, (LONG, MESSAGE, 100)]), Ok(()), "the most that there may be");
    }

    #[test]
    fn a_frame_that_claims_too_much_is_refused_before_its_body() {
        for length in [MESSAGE + 1, 1 << 46, 1 << 63, u64::MAX] {
            assert_eq!(check(&[(LONG, length, 0)]), Err(Refused::TooLarge(length)));
            assert_eq!(check(&[(COMMAND | LONG, length, 0)]), Err(Refused::TooLarge(length)));
        }
        let within = (MORE | LONG, 1 << 10, 1 << 10);
        assert_eq!(check(&[within, (LONG, u64::MAX, 0)]), Err(Refused::TooLarge(u64::MAX)));
    }

    #[test]
    fn frames_of_a_message_count_together() {
        let frame = (MORE | LONG, MESSAGE / 4, (MESSAGE / 4) as usize);
        let last = (LONG, MESSAGE / 4, (MESSAGE / 4) as usize);
        let whole = |frames: &[_]| Claims::default().check(&said(frames)).map(drop);
        assert_eq!(whole(&[frame, frame, frame, last, frame]), Ok(()));
        assert_eq!(whole(&[frame, frame, frame, frame, (0, 1, 0)]), Err(Refused::TooLarge(MESSAGE + 1)));
        assert_eq!(check(&[(MORE, 0, 0); FRAMES]), Err(Refused::TooManyFrames));
        let command_between: Vec<_> = [(MORE, 0, 0), (COMMAND, 3, 3)].into_iter().cycle().take(2 * FRAMES).collect();
        assert_eq!(check(&command_between), Err(Refused::TooManyFrames));
    }

    #[test]
    fn a_stranger_is_heard_up_to_the_end_of_a_first_message_that_may_not_be_large() {
        let stranger = || Claims { stranger: true, ..Claims::default() };
        let ready = (COMMAND, 30, 30);
        let first = said(&[ready, (MORE, 0, 0), (COMMAND, 3, 3), (MORE, 8, 8), (LONG, 3000, 3000)]);
        let bytes = [&first[..], &said(&[(LONG, MESSAGE, 9)])[GREETING as usize..]].concat();
        let mut claims = stranger();
        assert_eq!(claims.check(&bytes), Ok(first.len()));
        assert!(claims.introduced && claims.most == 3008);
        assert_eq!(claims.check(&bytes[first.len()..]), Ok(0), "not before it is known");
        claims.stranger = false;
        assert_eq!(claims.check(&bytes[first.len()..]), Ok(bytes.len() - first.len()));
        let empty = said(&[ready, (0, 0, 0), (0, 1, 1)]);
        assert_eq!(stranger().check(&empty), Ok(empty.len() - 3), "a frame without a body ends it, too");
        let large = (LONG, FIRST, 0);
        assert!(stranger().check(&said(&[large])).is_ok());
        assert_eq!(stranger().check(&said(&[(MORE, 1, 1), large])), Err(Refused::FirstTooLarge(FIRST + 1)));
        assert_eq!(stranger().check(&said(&[(LONG | COMMAND, FREE, 0)])).map(drop), Ok(()));
        assert_eq!(stranger().check(&said(&[(LONG | COMMAND, FREE + 1, 0)])), Err(Refused::CommandTooLarge(FREE + 1)));
    }

    /// A stranger's end of a relay, the library's end, what says that it is known, and what the relay comes to.
    async fn relayed(places: Arc<Semaphore>) -> (DuplexStream, TcpStream, oneshot::Sender<()>, Passing) {
        let inside = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let at = inside.local_addr().unwrap();
        let (caller, peer) = tokio::io::duplex(1 << 20);
        let (known, told) = oneshot::channel();
        let passing = tokio::spawn(async move { pass(peer, inside, Some(Stranger::new(told, places))).await.unwrap() });
        (caller, TcpStream::connect(at).await.unwrap(), known, passing)
    }

    type Passing = JoinHandle<Option<Refused>>;

    #[tokio::test(start_paused = true)]
    async fn a_stranger_that_does_not_end_what_it_began_is_hung_up_on() {
        for begun in [said(&[(MORE, 3, 3)]), said(&[(LONG, 3000, 10)]), said(&[(COMMAND, 30, 1)])] {
            let (mut caller, _library, _known, passing) = relayed(Arc::new(Semaphore::new(1))).await;
            let start = tokio::time::Instant::now();
            caller.write_all(&begun).await.unwrap();
            // Bytes now and then do not make it whole.
            for _ in 0..5 {
                tokio::time::sleep(Duration::from_secs(5)).await;
                caller.write_all(&[0xAB]).await.unwrap();
            }
            assert_eq!(passing.await.unwrap(), Some(Refused::TooSlow));
            assert_eq!(start.elapsed().as_secs(), stranger::PATIENCE.as_secs());
        }
        let (mut caller, _library, _known, mut passing) = relayed(Arc::new(Semaphore::new(1))).await;
        caller.write_all(&said(&[(COMMAND, 30, 30)])).await.unwrap();
        let hour = Duration::from_secs(3600);
        assert!(tokio::time::timeout(hour, &mut passing).await.is_err(), "who begins nothing may be silent");
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_strangers_begin_with_a_large_message_until_they_are_known() {
        let places = Arc::new(Semaphore::new(0));
        let (mut caller, mut library, known, passing) = relayed(places.clone()).await;
        let (greeting, large) = (said(&[]), said(&[(LONG, 1 << 20, 1 << 20)])[GREETING as usize..].to_vec());
        caller.write_all(&greeting).await.unwrap();
        library.read_exact(&mut vec![0; greeting.len()]).await.unwrap();
        let sent = large.clone();
        let sending = tokio::spawn(async move {
            caller.write_all(&sent).await.unwrap();
            caller
        });
        let mut got = vec![0; large.len()];
        let waiting = tokio::time::timeout(Duration::from_secs(100), library.read(&mut got)).await;
        assert!(waiting.is_err(), "there is no place");
        places.add_permits(1);
        library.read_exact(&mut got).await.unwrap();
        assert!(got == large && places.available_permits() == 0);
        known.send(()).unwrap();
        let mut caller = sending.await.unwrap();
        caller.write_all(&said(&[(LONG, MESSAGE, 1)])[GREETING as usize..]).await.unwrap();
        library.read_exact(&mut [0; 10]).await.unwrap();
        assert_eq!(places.available_permits(), 1, "its place is free");
        drop(caller);
        assert_eq!(passing.await.unwrap(), None);
    }
}
