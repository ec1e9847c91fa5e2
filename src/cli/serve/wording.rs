//! A connection that adds a sentence to hyper's own refusals, and that ends if the client doesn't read. hyper answers bytes that
//! aren't HTTP with a bare status, but every refusal of Weft's has a sentence; hyper limits the time that a head takes, but not
//! the time that a reply does.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};
use weft::serve::refusal::Refusal;

/// The time in which a client has to read some of what is sent.
const READ_TIME: Duration = Duration::from_secs(30);

/// A connection, with the reply that is being written in place of a bare refusal.
pub struct Wording {
    stream: TokioIo<TcpStream>,
    reply: Option<(Vec<u8>, usize)>,
    /// Runs while the client reads nothing.
    unread: Option<Pin<Box<Sleep>>>,
}

impl Wording {
    pub fn new(stream: TcpStream) -> Self {
        Self { stream: TokioIo::new(stream), reply: None, unread: None }
    }

    /// Writes to a client that reads from time to time.
    fn poll_write_in_time(&mut self, context: &mut Context, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if let Poll::Ready(written) = Pin::new(&mut self.stream).poll_write(context, bytes) {
            self.unread = None;
            return Poll::Ready(written);
        }
        let unread = self.unread.get_or_insert_with(|| Box::pin(sleep(READ_TIME)));
        ready!(unread.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

/// The reply in place of a bare refusal; `None` for any other bytes.
fn in_words(bytes: &[u8]) -> Option<Vec<u8>> {
    // Weft's own refusals all have bodies.
    let is_bare = bytes.starts_with(b"HTTP/1.1 4") && bytes.ends_with(b"\r\n\r\n");
    let head = std::str::from_utf8(bytes).ok().filter(|head| is_bare && head.contains("content-length: 0\r\n"))?;
    let status: u16 = head.get(9..12)?.parse().ok()?;
    let sentence = match status {
        414 => "the path is too long; use one of the documented paths",
        431 => "the head of the request is too large; send fewer or shorter headers",
        _ => "the request is not HTTP/1.1; use an HTTP client",
    };
    let body = Refusal::new(status, sentence).to_json().to_string();
    let head = head.trim_end().replace("content-length: 0", &format!("content-length: {}", body.len()));
    Some(format!("{head}\r\ncontent-type: application/json\r\n\r\n{body}").into_bytes())
}

impl Read for Wording {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context, cursor: ReadBufCursor) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, cursor)
    }
}

// There are no vectored writes: if a client had left, such a write would end the program by SIGPIPE.
impl Write for Wording {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.reply.is_none() {
            this.reply = in_words(bytes).map(|reply| (reply, 0));
        }
        let Some((reply, mut written)) = this.reply.take() else {
            return this.poll_write_in_time(context, bytes);
        };
        while written < reply.len() {
            match this.poll_write_in_time(context, &reply[written..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => written += count,
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Pending => {
                    this.reply = Some((reply, written));
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
