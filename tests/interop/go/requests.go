package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"cloud.google.com/go/longrunning/autogen/longrunningpb"
)

// requests sends the emulator requests that no gRPC client sends, and prints a line for each.
func requests(port string) error {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	client := &http.Client{Transport: &http.Transport{Protocols: protocols, DisableCompression: true}}
	list := prefixed(0, encoded(&longrunningpb.ListOperationsRequest{Name: "projects/go-requests"}))
	const listOperations = "/google.longrunning.Operations/ListOperations"

	for _, request := range []struct {
		name    string
		path    string
		headers map[string]string
		body    []byte
		check   func(answer) bool
		want    string
	}{
		{
			name:  "a_plain_request_is_ok",
			path:  listOperations,
			body:  list,
			check: func(a answer) bool { return a.http == 200 && a.status == "0" },
			want:  "grpc-status 0",
		},
		{
			name:    "a_wrong_content_type_is_http_415",
			path:    listOperations,
			headers: map[string]string{"content-type": "text/plain"},
			body:    list,
			check:   func(a answer) bool { return a.http == 415 },
			want:    "HTTP 415",
		},
		{
			name:  "a_message_over_4_mib_is_resource_exhausted",
			path:  listOperations,
			body:  prefixed(0, make([]byte, 4<<20+1)),
			check: func(a answer) bool { return a.http == 200 && a.status == "8" },
			want:  "grpc-status 8",
		},
		{
			name:  "two_messages_are_an_error",
			path:  listOperations,
			body:  append(bytes.Clone(list), list...),
			check: func(a answer) bool { return a.http == 200 && a.status != "" && a.status != "0" },
			want:  "a grpc-status other than 0",
		},
		{
			name:    "a_malformed_timeout_is_http_4xx",
			path:    listOperations,
			headers: map[string]string{"grpc-timeout": "nonsense"},
			body:    list,
			check:   func(a answer) bool { return a.http >= 400 && a.http < 500 },
			want:    "HTTP 4xx",
		},
		{
			name:    "grpc_encoding_gzip_with_compressed_flag_0_is_ok",
			path:    listOperations,
			headers: map[string]string{"grpc-encoding": "gzip"},
			body:    list,
			check:   func(a answer) bool { return a.http == 200 && a.status == "0" },
			want:    "grpc-status 0",
		},
		{
			name:  "an_unknown_method_is_unimplemented_with_a_message",
			path:  "/google.longrunning.Operations/UndoOperation",
			body:  list,
			check: func(a answer) bool { return a.http == 200 && a.status == "12" && a.message != "" },
			want:  "grpc-status 12 with a grpc-message",
		},
	} {
		answer, err := send(client, "http://127.0.0.1:"+port+request.path, request.headers, request.body)
		switch {
		case err != nil:
			fmt.Printf("FAIL go-requests/%s: %v, not %s\n", request.name, err, request.want)
		case !request.check(answer):
			fmt.Printf("FAIL go-requests/%s: %v, not %s\n", request.name, answer, request.want)
		default:
			fmt.Printf("ok   go-requests/%s\n", request.name)
		}
	}
	return nil
}

// answer is what decides on the outcome of a gRPC call.
type answer struct {
	http    int
	status  string
	message string
}

func (a answer) String() string {
	return fmt.Sprintf("HTTP %d with grpc-status %q and grpc-message %q", a.http, a.status, a.message)
}

// send sends a request with the headers of a gRPC call, where headers does not replace them.
func send(client *http.Client, url string, headers map[string]string, body []byte) (answer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	request.Header.Set("te", "trailers")
	request.Header.Set("content-type", "application/grpc")
	for name, value := range headers {
		request.Header.Set(name, value)
	}
	response, err := client.Do(request)
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	// The trailers are there at the end of the body.
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return answer{}, err
	}
	fields := response.Trailer
	if fields.Get("grpc-status") == "" {
		fields = response.Header // Trailers-Only
	}
	return answer{response.StatusCode, fields.Get("grpc-status"), fields.Get("grpc-message")}, nil
}
