//! One HTTP request over a connection of its own: what Vault needs, and no more. No redirects, no
//! proxies, no cookies, answers of bounded length.

use crate::error::KeyError;
use crate::tls::{connect, TlsFiles};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::header::{HeaderValue, CONTENT_TYPE, HOST};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use std::time::Duration;
use zeroize::Zeroizing;

/// Longest answer, in bytes.
const ANSWER_BYTES_MAX: usize = 256 << 10;

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Server {
    /// How errors call it.
    pub(crate) name: String,
    pub(crate) host: String,
    pub(crate) port: u16,
    /// None: without TLS.
    pub(crate) tls: Option<TlsFiles>,
    pub(crate) timeout: Duration,
}

/// A request: with a body it is a POST, without one a GET.
pub(crate) struct Ask<'a> {
    pub(crate) path: &'a str,
    pub(crate) headers: &'a [(&'static str, &'a str)],
    pub(crate) body: Option<Zeroizing<Vec<u8>>>,
}

/// An answer: its status and body, which is wiped when dropped.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Zeroizing<Vec<u8>>,
}

impl Server {
    /// Sends a request and waits for its answer, within the time-out.
    ///
    /// # Errors
    /// When there is no whole answer. A status is no error here.
    pub(crate) async fn ask(&self, ask: Ask<'_>) -> Result<Answer, KeyError> {
        let done = tokio::time::timeout(self.timeout, self.exchange(ask)).await;
        done.unwrap_or_else(|_| {
            let (name, ms) = (&self.name, self.timeout.as_millis());
            Err(KeyError::unreachable(format!(
                "{name} did not answer within {ms} ms"
            )))
        })
    }

    async fn exchange(&self, ask: Ask<'_>) -> Result<Answer, KeyError> {
        let request = self.request(ask)?;
        let stream = connect(&self.name, &self.host, self.port, self.tls.as_ref()).await?;
        let connection = http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = connection.map_err(|e| self.failed(&e))?;
        let answer = async {
            let answer = sender.send_request(request).await;
            let answer = answer.map_err(|e| self.failed(&e))?;
            let status = answer.status().as_u16();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
                .collect()
                .await;
            let body = body.map_err(|e| KeyError::unreachable(format!("{}: {e}", self.name)))?;
            let mut whole = Zeroizing::new(Vec::with_capacity(ANSWER_BYTES_MAX));
            whole.extend_from_slice(&body.to_bytes());
            Ok(Answer {
                status,
                body: whole,
            })
        };
        tokio::pin!(answer);
        tokio::select! {
            biased;
            answer = &mut answer => answer,
            ended = connection => match ended {
                // The connection may end with the answer: it is complete then.
                Ok(()) => answer.await,
                Err(e) => Err(self.failed(&e)),
            },
        }
    }

    fn request(&self, ask: Ask<'_>) -> Result<Request<Full<Bytes>>, KeyError> {
        let odd = |e: hyper::http::Error| KeyError::config(format!("{}: {e}", self.name));
        let method = match ask.body {
            Some(_) => Method::POST,
            None => Method::GET,
        };
        let host = match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        };
        let mut request = Request::builder().method(method).uri(ask.path);
        request = request.header(HOST, host);
        for (name, value) in ask.headers {
            let mut value = HeaderValue::from_str(value).map_err(|e| odd(e.into()))?;
            value.set_sensitive(true); // it may be a token
            request = request.header(*name, value);
        }
        if ask.body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let body = ask.body.map_or_else(Bytes::new, Bytes::from_owner);
        request.body(Full::new(body)).map_err(odd)
    }

    fn failed(&self, error: &hyper::Error) -> KeyError {
        // What is beneath says whether a certificate was refused.
        let mut source = std::error::Error::source(error);
        while let Some(inner) = source {
            if let Some(io) = inner.downcast_ref::<std::io::Error>() {
                return crate::tls::io_error(&self.name, io);
            }
            source = inner.source();
        }
        KeyError::unreachable(format!("{} cannot be reached: {error}", self.name))
    }
}
