package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"cloud.google.com/go/longrunning/autogen/longrunningpb"
	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"

	// Registers the compressor of the kind `gzip`.
	_ "google.golang.org/grpc/encoding/gzip"
)

var (
	kindOfName = regexp.MustCompile(`(?s)^(?:.*/)?([a-z]+)-?(\d*)[^/]*$`)
	bigParent  = regexp.MustCompile(`^big/(\d+)/(\d+)$`)
	known      = strings.Fields("run stubborn succeeded failed noresult ends late echo flaky hang seen gzip")
)

// service is a stateful google.longrunning.Operations service. Operations exist from the start, and
// the last segment of a name decides what its operation does: see README.md.
type service struct {
	longrunningpb.UnimplementedOperationsServer
	mu         sync.Mutex
	operations map[string]*operation
	deleted    map[string]bool
}

// operation is the record of an operation. The mutex of the service guards it.
type operation struct {
	message *longrunningpb.Operation
	kind    string
	ended   chan struct{}
	asked   int
}

func newService() *service {
	return &service{operations: map[string]*operation{}, deleted: map[string]bool{}}
}

func (s *service) GetOperation(
	ctx context.Context, request *longrunningpb.GetOperationRequest,
) (*longrunningpb.Operation, error) {
	operation, err := s.find(ctx, request.Name)
	if err != nil {
		return nil, err
	}
	return s.snapshot(operation), nil
}

func (s *service) CancelOperation(
	ctx context.Context, request *longrunningpb.CancelOperationRequest,
) (*emptypb.Empty, error) {
	operation, err := s.find(ctx, request.Name)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if operation.kind == "stubborn" {
		operation.succeed()
	} else {
		operation.fail(&rpcstatus.Status{Code: int32(code.Code_CANCELLED), Message: "abgebrochen ✂"})
	}
	return &emptypb.Empty{}, nil
}

func (s *service) DeleteOperation(
	ctx context.Context, request *longrunningpb.DeleteOperationRequest,
) (*emptypb.Empty, error) {
	if _, err := s.find(ctx, request.Name); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.operations, request.Name)
	s.deleted[request.Name] = true
	return &emptypb.Empty{}, nil
}

func (s *service) WaitOperation(
	ctx context.Context, request *longrunningpb.WaitOperationRequest,
) (*longrunningpb.Operation, error) {
	operation, err := s.find(ctx, request.Name)
	if err != nil {
		return nil, err
	}
	var limit <-chan time.Time
	if request.Timeout != nil {
		limit = time.After(request.Timeout.AsDuration())
	}
	select {
	case <-operation.ended:
	case <-limit:
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	return s.snapshot(operation), nil
}

func (s *service) ListOperations(
	ctx context.Context, request *longrunningpb.ListOperationsRequest,
) (*longrunningpb.ListOperationsResponse, error) {
	if big := bigParent.FindStringSubmatch(request.Name); big != nil {
		return bigPage(number(big[1]), number(big[2])), nil
	}
	if kind, argument := parse(request.Name); kind == "code" {
		return nil, refuse(ctx, failure(code.Code(argument)))
	}
	if !slices.Contains([]string{"", "done=true", "done=false"}, request.Filter) {
		return nil, refuse(ctx, &rpcstatus.Status{
			Code:    int32(code.Code_INVALID_ARGUMENT),
			Message: fmt.Sprintf("filter '%s'?", request.Filter),
		})
	}
	found := s.children(request.Name, request.Filter)
	start := min(number(request.PageToken), len(found))
	end := len(found)
	response := &longrunningpb.ListOperationsResponse{}
	if size := int(request.PageSize); size > 0 && start+size < end {
		end = start + size
		response.NextPageToken = strconv.Itoa(end)
	}
	response.Operations = found[start:end]
	if request.ReturnPartialSuccess {
		response.Unreachable = []string{"locations/ü"}
	}
	return response, nil
}

// find returns an operation after the call has been through what its name asks for.
func (s *service) find(ctx context.Context, name string) (*operation, error) {
	kind, argument := parse(name)
	switch kind {
	case "code":
		return nil, refuse(ctx, failure(code.Code(argument)))
	case "fat":
		refusal := failure(code.Code_ABORTED)
		detail := &errdetails.DebugInfo{Detail: strings.Repeat("x", argument)}
		refusal.Details = append(refusal.Details, packed(detail))
		return nil, refuse(ctx, refusal)
	case "crash":
		os.Exit(1)
	case "late":
		time.Sleep(time.Duration(argument) * time.Millisecond)
	case "hang":
		<-ctx.Done()
		// The client has abandoned the call: the operation `seen` of the same name reports it.
		s.mu.Lock()
		defer s.mu.Unlock()
		s.lookup(strings.ReplaceAll(name, "hang", "seen")).succeed()
		return nil, status.FromContextError(ctx.Err()).Err()
	case "gzip":
		if err := grpc.SetSendCompressor(ctx, "gzip"); err != nil {
			return nil, refuse(ctx, &rpcstatus.Status{
				Code:    int32(code.Code_FAILED_PRECONDITION),
				Message: err.Error(),
			})
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	operation := s.lookup(name)
	if operation == nil {
		return nil, refuse(ctx, &rpcstatus.Status{
			Code:    int32(code.Code_NOT_FOUND),
			Message: fmt.Sprintf("kenne '%s' nicht", name),
		})
	}
	operation.asked++
	if kind == "flaky" && operation.asked <= argument {
		return nil, refuse(ctx, failure(code.Code_UNAVAILABLE))
	}
	if kind == "echo" || kind == "flaky" {
		operation.message.Metadata = packed(seen(ctx, operation.asked))
	}
	return operation, nil
}

// lookup returns the operation of a name, or nil for an unknown kind and for a deleted operation.
func (s *service) lookup(name string) *operation {
	kind, argument := parse(name)
	if !slices.Contains(known, kind) || s.deleted[name] {
		return nil
	}
	found := s.operations[name]
	if found != nil {
		return found
	}
	found = &operation{
		message: &longrunningpb.Operation{Name: name},
		kind:    kind,
		ended:   make(chan struct{}),
	}
	s.operations[name] = found
	switch kind {
	case "succeeded":
		found.succeed()
	case "failed":
		found.fail(failure(code.Code_PERMISSION_DENIED))
	case "noresult":
		found.end()
	case "ends":
		time.AfterFunc(time.Duration(argument)*time.Millisecond, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			found.succeed()
		})
	}
	return found
}

// children returns the operations of a parent that match the filter, sorted by name.
func (s *service) children(parent, filter string) []*longrunningpb.Operation {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []*longrunningpb.Operation
	for name, operation := range s.operations {
		done := strconv.FormatBool(operation.message.Done)
		if strings.HasPrefix(name, parent+"/operations/") && (filter == "" || filter == "done="+done) {
			found = append(found, proto.CloneOf(operation.message))
		}
	}
	slices.SortFunc(found, func(a, b *longrunningpb.Operation) int { return strings.Compare(a.Name, b.Name) })
	return found
}

func (s *service) snapshot(operation *operation) *longrunningpb.Operation {
	s.mu.Lock()
	defer s.mu.Unlock()
	return proto.CloneOf(operation.message)
}

func (o *operation) succeed() {
	if !o.message.Done {
		response := packed(&durationpb.Duration{Seconds: 42})
		o.message.Result = &longrunningpb.Operation_Response{Response: response}
		o.end()
	}
}

func (o *operation) fail(failure *rpcstatus.Status) {
	if !o.message.Done {
		o.message.Result = &longrunningpb.Operation_Error{Error: failure}
		o.end()
	}
}

func (o *operation) end() {
	o.message.Done = true
	close(o.ended)
}

// parse returns the kind and the number of the last segment of a name.
func parse(name string) (string, int) {
	match := kindOfName.FindStringSubmatch(name)
	if match == nil {
		return "", 0
	}
	return match[1], number(match[2])
}

// number returns the value of digits, and 0 where there are none.
func number(digits string) int {
	value, _ := strconv.Atoi(digits)
	return value
}

func bigPage(count, size int) *longrunningpb.ListOperationsResponse {
	padding := &anypb.Any{TypeUrl: "interop.example/Padding", Value: bytes.Repeat([]byte("x"), size)}
	response := &longrunningpb.ListOperationsResponse{}
	for n := range count {
		operation := &longrunningpb.Operation{Name: fmt.Sprintf("big/%d", n), Metadata: padding}
		response.Operations = append(response.Operations, operation)
	}
	return response
}

// seen returns what this server sees of a call, as a message that every client can read.
func seen(ctx context.Context, asked int) *errdetails.ErrorInfo {
	seen := map[string]string{"asked": strconv.Itoa(asked)}
	headers, _ := metadata.FromIncomingContext(ctx)
	for key, values := range headers {
		if strings.HasSuffix(key, "-bin") {
			for n, value := range values {
				values[n] = hex.EncodeToString([]byte(value))
			}
		}
		seen[key] = strings.Join(values, ", ")
	}
	if deadline, ok := ctx.Deadline(); ok {
		seen["remaining-ms"] = strconv.FormatInt(time.Until(deadline).Round(time.Millisecond).Milliseconds(), 10)
	}
	if client, ok := peer.FromContext(ctx); ok {
		if info, ok := client.AuthInfo.(credentials.TLSInfo); ok && len(info.State.PeerCertificates) > 0 {
			seen["peer"] = info.State.PeerCertificates[0].Subject.CommonName
		}
	}
	return &errdetails.ErrorInfo{Reason: "SEEN", Metadata: seen}
}

// refuse returns the error of a call that is answered with a google.rpc.Status and with metadata.
func refuse(ctx context.Context, refusal *rpcstatus.Status) error {
	every := make([]byte, 256)
	for n := range every {
		every[n] = byte(n)
	}
	trailer := metadata.Pairs("x-answer", "one", "x-answer", "two", "x-answer-bin", string(every))
	if err := grpc.SetTrailer(ctx, trailer); err != nil {
		return err
	}
	return status.ErrorProto(refusal)
}

func failure(which code.Code) *rpcstatus.Status {
	return &rpcstatus.Status{
		Code:    int32(which),
		Message: fmt.Sprintf("nicht möglich: %s – 不行 🚫 100%%", which),
		Details: []*anypb.Any{
			packed(&errdetails.ErrorInfo{
				Reason:   "INTEROP",
				Domain:   "interop.example",
				Metadata: map[string]string{"schlüssel": "wért"},
			}),
			packed(&errdetails.LocalizedMessage{Locale: "ja", Message: "できません"}),
		},
	}
}

// packed returns a message in an Any. It panics on a message that cannot be encoded, of which this
// program has none.
func packed(message proto.Message) *anypb.Any {
	result, err := anypb.New(message)
	if err != nil {
		panic(err)
	}
	return result
}
