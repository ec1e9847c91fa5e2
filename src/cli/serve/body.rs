//! The bodies of replies: whole ones, and streams of server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};
use tokio::sync::mpsc::UnboundedReceiver;
use weft::serve::queue::Event;
use weft::serve::reply::Reply;

use super::http::Waiting;

/// A reply's body.
pub enum Body {
    /// The whole body.
    Whole(Option<Bytes>),
    /// A stream of its jobs' events.
    Stream(Box<Stream>),
}

/// A stream of server-sent events.
pub struct Stream {
    events: UnboundedReceiver<Event>,
    reply: Reply,
    ready: VecDeque<String>,
    is_over: bool,
    /// Dropped with the connection.
    _waiting: Waiting,
}

impl Body {
    pub fn whole(bytes: Bytes) -> Self {
        Self::Whole(Some(bytes))
    }

    pub fn stream(events: UnboundedReceiver<Event>, reply: Reply, waiting: Waiting) -> Self {
        let ready = VecDeque::new();
        Self::Stream(Box::new(Stream { events, reply, ready, is_over: false, _waiting: waiting }))
    }
}

impl Stream {
    fn poll_next(&mut self, context: &mut Context) -> Poll<Option<Bytes>> {
        loop {
            if let Some(data) = self.ready.pop_front() {
                return Poll::Ready(Some(Bytes::from(format!("data: {data}\n\n"))));
            }
            if self.is_over {
                return Poll::Ready(None);
            }
            match ready!(self.events.poll_recv(context)) {
                Some(event) => {
                    let sent = self.reply.parts(event);
                    self.ready.extend(sent.data);
                    self.is_over = sent.is_last;
                }
                None => self.is_over = true,
            }
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(stream) => stream.poll_next(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}
