//! The connections of `weft serve`: HTTP/1.1 by hyper, on one thread of tokio's. The sizes of heads and bodies, the number of
//! connections, and the time that each may take are bounded. `weft::serve` parses and answers the requests.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::TcpListener;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioTimer;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use weft::error::{Error, Result};
use weft::serve::door::{Door, Endpoint, Head, Route};
use weft::serve::page;
use weft::serve::queue::Event;
use weft::serve::refusal::Refusal;
use weft::serve::reply::{self, Reply};
use weft::serve::serving::{Client, Serving};

use super::body::Body;
use super::wording::Wording;

/// The largest body, in bytes: about a thousand times a long question.
pub const MOST_BODY: usize = 1 << 20;
/// Bodies above this size, in bytes, are few at a time, so that all connections together take little memory.
const LARGE_BODY: usize = 1 << 14;
/// The largest number of large bodies in memory.
const MOST_LARGE: usize = 32;
/// The number of bytes that are read of a body that is too large, so that the client gets the refusal and not a broken connection.
const MOST_DRAINED: usize = 1 << 24;
/// The largest head, in bytes.
const MOST_HEAD: usize = 1 << 16;
/// The largest number of open connections; others wait to be accepted.
const MOST_CONNECTIONS: usize = 1024;
/// The largest number of threads that parse and tokenize requests.
const READERS: usize = 4;
/// What stands for the value of a header that isn't text.
const UNREADABLE: &str = "\u{fffd}";
/// The time that a head may take; it also closes a connection on which no further request comes.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// The time that a head may take while more than half of the connections are open.
const CROWDED_HEAD_TIME: Duration = Duration::from_secs(3);
/// The time that a body may take.
const BODY_TIME: Duration = Duration::from_secs(30);
/// The time that clients have to read their last answers when the server ends.
const LAST_TIME: Duration = Duration::from_secs(10);

/// What the connections share.
pub struct Server {
    pub serving: Arc<Serving>,
    pub door: Door,
    /// One permit for each body that is larger than [`LARGE_BODY`] and is in memory.
    pub large: Arc<Semaphore>,
}

impl Server {
    pub fn new(serving: Arc<Serving>, door: Door) -> Self {
        Self { serving, door, large: Arc::new(Semaphore::new(MOST_LARGE)) }
    }
}

/// Sets a flag when it is dropped, which says that nobody waits for the answer any more.
pub struct Waiting(Arc<AtomicBool>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The runtime of the connections, on a single thread.
pub fn runtime() -> Result<Runtime> {
    let runtime = Builder::new_current_thread().enable_io().enable_time().max_blocking_threads(READERS).build();
    runtime.map_err(|e| Error::Run(format!("the connections' thread can't be started: {e}")))
}

/// Serves connections until `ended` becomes true, and then finishes the requests that are being answered.
pub async fn serve(
    listener: TcpListener,
    server: Arc<Server>,
    mut ended: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let permits = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { break };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = ended.changed() => break,
        };
        let Ok((stream, _)) = accepted else {
            // This happens if the process has too many open files, for example.
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let is_crowded = permits.available_permits() < MOST_CONNECTIONS / 2;
        let head_time = if is_crowded { CROWDED_HEAD_TIME } else { HEAD_TIME };
        let (server, mut ended) = (server.clone(), ended.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(server.clone(), request));
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(head_time).max_buf_size(MOST_HEAD);
            let mut connection = pin!(http.serve_connection(Wording::new(stream), service));
            // If the connection breaks, there is nobody to report it to.
            tokio::select! {
                _ = connection.as_mut() => {}
                _ = ended.changed() => {
                    connection.as_mut().graceful_shutdown();
                    let _ = connection.await;
                }
            }
            drop(permit);
        });
    }
    drop(listener);
    let _ = timeout(LAST_TIME, permits.acquire_many(MOST_CONNECTIONS as u32)).await;
    Ok(())
}

async fn answer(server: Arc<Server>, request: Request<Incoming>) -> std::result::Result<Response<Body>, Infallible> {
    Ok(reply(&server, request).await.unwrap_or_else(|refusal| refused(&refusal)))
}

async fn reply(server: &Server, request: Request<Incoming>) -> std::result::Result<Response<Body>, Refusal> {
    // A value that is no text counts as one that nothing is equal to.
    let text = |name: HeaderName| request.headers().get(name).map(|value| value.to_str().unwrap_or(UNREADABLE));
    for name in [header::HOST, header::ORIGIN, header::AUTHORIZATION, header::CONTENT_TYPE] {
        let count = request.headers().get_all(&name).iter().count();
        if count > 1 {
            return Err(Refusal::new(400, format!("there are {count} headers {name}; send one")));
        }
    }
    let target = request.uri().path_and_query().map_or("", |target| target.as_str());
    let head = Head {
        method: request.method().as_str(),
        target,
        host: text(header::HOST).or(request.uri().authority().map(|authority| authority.as_str())),
        origin: text(header::ORIGIN),
        fetch_site: text(HeaderName::from_static("sec-fetch-site")),
        authorization: text(header::AUTHORIZATION),
        content_type: text(header::CONTENT_TYPE),
    };
    let serving = &server.serving;
    match server.door.route(&head)? {
        Route::File(path) => Ok(file(path)),
        Route::Health if serving.queue.is_closed() => Err(Refusal::new(503, "the server is shutting down")),
        Route::Health => Ok(json(200, "{\"status\": \"ok\"}".to_owned())),
        Route::Models => Ok(json(200, reply::models(serving).to_string())),
        Route::Model(name) => match serving.names.iter().position(|own| *own == name) {
            Some(index) => Ok(json(200, reply::model(serving, index).to_string())),
            None => {
                Err(Refusal::new(404, "there is no such model; /v1/models lists them").with_code("model_not_found"))
            }
        },
        Route::Answer(endpoint) => ask(server, endpoint, request).await,
    }
}

/// Puts a request's jobs into the queue, and waits for the whole answer or for the beginning of a streamed one.
async fn ask(
    server: &Server,
    endpoint: Endpoint,
    request: Request<Incoming>,
) -> std::result::Result<Response<Body>, Refusal> {
    let (serving, large) = (server.serving.clone(), server.large.clone());
    let coding = request.headers().get(header::CONTENT_ENCODING).filter(|coding| *coding != "identity");
    if let Some(coding) = coding {
        let coding = coding.to_str().unwrap_or(UNREADABLE);
        let message = format!("the body is encoded by {coding:.20}; send it as it is, without Content-Encoding");
        return Err(Refusal::new(415, message));
    }
    let expects = request.headers().contains_key(header::EXPECT);
    let read = timeout(BODY_TIME, read_body(request.into_body(), expects, large)).await;
    let too_slow = || {
        let secs = BODY_TIME.as_secs();
        Refusal::new(
            408,
            format!("the body took more than {secs} s; send as many bytes as Content-Length says, at once"),
        )
    };
    let (body, permit) = read.map_err(|_| too_slow())??;
    let (sender, events) = unbounded_channel();
    let gone = Arc::new(AtomicBool::new(false));
    let waiting = Waiting(gone.clone());
    let listener = Arc::new(move |event| drop(sender.send(event)));
    // Tokenizing a long text takes a while, and the other connections mustn't wait for it.
    let take = move || {
        let taken = serving.take(endpoint, &body, &Client { listener, gone });
        drop((body, permit));
        taken
    };
    let taken = spawn_blocking(take).await;
    let taken = taken.map_err(|_| Refusal::new(500, "the request could not be read because of a bug in Weft"))??;
    let reply = Reply::new(taken);
    match reply.streams() {
        true => {
            let stream = response(200, "text/event-stream; charset=utf-8", Body::stream(events, reply, waiting));
            Ok(with(stream, HeaderName::from_static("x-accel-buffering"), "no"))
        }
        false => whole(events, reply).await,
    }
}

async fn whole(mut events: UnboundedReceiver<Event>, mut reply: Reply) -> std::result::Result<Response<Body>, Refusal> {
    while let Some(event) = events.recv().await {
        match reply.whole(event) {
            Some(Ok(value)) => return Ok(json(200, value.to_string())),
            Some(Err(refusal)) => return Err(refusal),
            None => {}
        }
    }
    Err(Refusal::new(500, "the answer was lost because of a bug in Weft"))
}

/// Reads a body, and refuses one that is too large. A large one has a permit.
async fn read_body(
    mut body: Incoming,
    expects: bool,
    large: Arc<Semaphore>,
) -> std::result::Result<(Vec<u8>, Option<OwnedSemaphorePermit>), Refusal> {
    let too_large = || Refusal::new(413, format!("the body is larger than {MOST_BODY} bytes; shorten the prompt"));
    if expects && body.size_hint().lower() > MOST_BODY as u64 {
        return Err(too_large());
    }
    let (mut bytes, mut len): (Vec<u8>, usize) = (vec![], 0);
    let mut permit = None;
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let frame = frame.map_err(|e| Refusal::new(400, format!("the body can't be read: {e}; send it again")))?;
        let Ok(data) = frame.into_data() else { continue };
        len += data.len();
        if len > MOST_DRAINED {
            break;
        }
        if len > LARGE_BODY && permit.is_none() {
            permit = Some(
                large.clone().acquire_owned().await.map_err(|_| Refusal::new(503, "the server is being stopped"))?,
            );
        }
        if len > MOST_BODY {
            bytes = vec![];
        } else {
            bytes.extend_from_slice(&data);
        }
    }
    if len > MOST_BODY { Err(too_large()) } else { Ok((bytes, permit)) }
}

fn file(path: &str) -> Response<Body> {
    let Some((content, kind)) = page::file(path) else {
        return refused(&Refusal::new(404, "there is no such file"));
    };
    let response = response(200, kind, Body::whole(Bytes::from_static(content.as_bytes())));
    with(response, header::CONTENT_SECURITY_POLICY, page::POLICY)
}

fn json(status: u16, text: String) -> Response<Body> {
    response(status, "application/json", Body::whole(Bytes::from(text)))
}

fn refused(refusal: &Refusal) -> Response<Body> {
    let mut response = json(refusal.status, refusal.to_json().to_string());
    if let Some(secs) = refusal.retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(secs));
    }
    if refusal.status == 401 {
        response = with(response, header::WWW_AUTHENTICATE, "Bearer");
    }
    match refusal.allow {
        Some(methods) => with(response, header::ALLOW, methods),
        None => response,
    }
}

fn response(status: u16, kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ]
    .into_iter()
    .fold(response, |response, (name, value)| with(response, name, value))
}

fn with(mut response: Response<Body>, name: HeaderName, value: &'static str) -> Response<Body> {
    response.headers_mut().insert(name, HeaderValue::from_static(value));
    response
}
