//! Requests whose method, content-type, timeout or path is not that of a call.

use http::StatusCode;
use tonic::Code;

use super::{Answer, GET, connected, message, post, request};

#[tokio::test]
async fn a_method_other_than_post_is_answered_with_http_405() {
    let (emulator, mut connection) = connected().await;
    for method in ["GET", "PUT", "HEAD", "DELETE", "OPTIONS"] {
        let request = post(&emulator, GET).method(method);
        let answer = connection.answer(request, &message()).await;
        assert_eq!(answer.http, StatusCode::METHOD_NOT_ALLOWED, "{method}");
        assert_eq!(answer.headers["allow"], "POST");
        assert_eq!(answer.headers.get("grpc-status"), None);
        assert_eq!(answer.text, "");
    }
}

#[tokio::test]
async fn a_content_type_other_than_grpc_is_answered_with_http_415() {
    let (emulator, mut connection) = connected().await;
    for content_type in [
        "",
        "application/json",
        "application/grp",
        "application/grpcfoo",
        "application/grpc-web",
        "application/grpc-web+proto",
        "text/plain; application/grpc",
    ] {
        let request = request(&emulator, GET).header("content-type", content_type);
        let answer = connection.answer(request, &message()).await;
        let text =
            format!("content-type {content_type:?} is not served, expected \"application/grpc\"");
        answer.assert_http(StatusCode::UNSUPPORTED_MEDIA_TYPE, &text);
    }
    let request = request(&emulator, GET);
    let answer = connection.answer(request, &message()).await;
    let text = "content-type is missing, expected \"application/grpc\"";
    answer.assert_http(StatusCode::UNSUPPORTED_MEDIA_TYPE, text);
}

#[tokio::test]
async fn every_content_type_of_grpc_with_protobuf_is_served() {
    let (emulator, mut connection) = connected().await;
    for content_type in [
        "application/grpc",
        "application/grpc+proto",
        "application/grpc;charset=utf-8",
        "application/grpc+proto ; charset=utf-8",
        "Application/GRPC",
    ] {
        let request = request(&emulator, GET).header("content-type", content_type);
        let answer = connection.answer(request, &message()).await;
        answer.assert_ok();
    }
}

#[tokio::test]
async fn a_message_encoding_other_than_protobuf_is_unimplemented() {
    let (emulator, mut connection) = connected().await;
    for content_type in ["application/grpc+json", "application/grpc+json; v=1"] {
        let request = request(&emulator, GET).header("content-type", content_type);
        let answer = connection.answer(request, &message()).await;
        let message = format!(
            "content-type {content_type:?} is not supported, expected \"application/grpc\" or \
             \"application/grpc+proto\""
        );
        answer.assert_status(Code::Unimplemented, &message);
    }
}

#[tokio::test]
async fn an_invalid_timeout_is_answered_with_http_400() {
    let (emulator, mut connection) = connected().await;
    for timeout in ["", "soon", "1s", "-1S", "123456789S"] {
        let request = post(&emulator, GET).header("grpc-timeout", timeout);
        let answer = connection.answer(request, &message()).await;
        let text =
            format!("grpc-timeout {timeout:?} is not up to 8 digits and one of H, M, S, m, u, n");
        answer.assert_http(StatusCode::BAD_REQUEST, &text);
    }
}

#[tokio::test]
async fn an_unknown_method_is_unimplemented_by_its_path() {
    let (emulator, mut connection) = connected().await;
    for path in [
        "/google.longrunning.Operations/Nope",
        "/google.longrunning.Operations/GetOperation/",
        "/google.longrunning.Operations/getoperation",
        "/google.longrunning.Operations",
        "/grpc.health.v1.Health/Check",
        "/",
    ] {
        let answer = connection.answer(post(&emulator, path), &message()).await;
        answer.assert_status(Code::Unimplemented, &format!("unknown method {path}"));
    }
}

#[tokio::test]
async fn an_unknown_method_is_answered_before_the_request_ends() {
    let (emulator, mut connection) = connected().await;
    let (answer, _body) = connection.open(post(&emulator, "/a.b/C"), b"").await;
    let answer = Answer::read(answer).await;
    answer.assert_status(Code::Unimplemented, "unknown method /a.b/C");
}
