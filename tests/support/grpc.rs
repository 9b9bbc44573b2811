//! A gRPC server of the least kind: it notes the headers of each call, and answers with an empty
//! message, or says UNAUTHENTICATED.

#![allow(clippy::unwrap_used, dead_code)] // each test uses its own part of it

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use bytes::Bytes;
use http::{HeaderMap, Response};
use tokio::{net::TcpListener, task::JoinHandle};

pub(crate) struct GrpcServer {
    pub(crate) address: SocketAddr,
    calls: Arc<Mutex<Vec<HeaderMap>>>,
    refuses: Arc<AtomicBool>,
    accepting: JoinHandle<()>,
}

impl GrpcServer {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let calls: Arc<Mutex<Vec<HeaderMap>>> = Arc::default();
        let refuses = Arc::new(AtomicBool::new(false));
        let (noted, refusing) = (Arc::clone(&calls), Arc::clone(&refuses));
        let accepting = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (noted, refusing) = (Arc::clone(&noted), Arc::clone(&refusing));
                tokio::spawn(async move {
                    let mut connection = h2::server::handshake(stream).await.unwrap();
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        noted.lock().unwrap().push(request.headers().clone());
                        let refuse = refusing.load(SeqCst);
                        tokio::spawn(async move {
                            // An answer before the request's end would reset the stream.
                            let mut body = request.into_body();
                            while let Some(Ok(data)) = body.data().await {
                                let _ = body.flow_control().release_capacity(data.len());
                            }
                            answer(respond, refuse);
                        });
                    }
                });
            }
        });
        Self {
            address,
            calls,
            refuses,
            accepting,
        }
    }

    /// What the calls so far carried in this header.
    pub(crate) fn seen(&self, name: &str) -> Vec<String> {
        let calls = self.calls.lock().unwrap();
        let value = |headers: &HeaderMap| Some(headers.get(name)?.to_str().unwrap().to_owned());
        calls.iter().filter_map(value).collect()
    }

    /// Says UNAUTHENTICATED from now on, or not.
    pub(crate) fn refuse(&self, refuse: bool) {
        self.refuses.store(refuse, SeqCst);
    }
}

impl Drop for GrpcServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn answer(mut respond: h2::server::SendResponse<Bytes>, refuse: bool) {
    let response = Response::builder().header("content-type", "application/grpc");
    if refuse {
        let response = response.header("grpc-status", "16").body(()).unwrap();
        respond.send_response(response, true).unwrap();
        return;
    }
    // A caller may have gone meanwhile.
    if let Ok(mut stream) = respond.send_response(response.body(()).unwrap(), false) {
        let _ = stream.send_data(Bytes::from_static(&[0; 5]), false);
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        let _ = stream.send_trailers(trailers);
    }
}
