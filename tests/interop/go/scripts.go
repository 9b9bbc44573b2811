package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"cloud.google.com/go/longrunning/autogen/longrunningpb"
	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
)

// calls are the steps of a script that make a call. Others steer the emulator.
var calls = []string{"get", "cancel", "delete", "wait", "list", "get within 1s", "result", "cancel and result"}

// scripts plays each script of scripts.json on the steered emulator with grpc-go, and prints the
// outcomes of its calls. The working directory is tests/interop.
func scripts(port, controlPort string) error {
	text, err := os.ReadFile("scripts.json")
	if err != nil {
		return err
	}
	var scripts []struct {
		Script string
		Steps  []string
	}
	if err := json.Unmarshal(text, &scripts); err != nil {
		return err
	}
	control, err := newControl(controlPort)
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient("passthrough:///127.0.0.1:"+port,
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy())
	if err != nil {
		return err
	}
	defer conn.Close()
	client := longrunningpb.NewOperationsClient(conn)
	results := map[string][]string{}
	for number, script := range scripts {
		outcomes, err := play(client, control, fmt.Sprintf("projects/go-%d", number), script.Steps)
		if err != nil {
			return fmt.Errorf("%s: %w", script.Script, err)
		}
		results[script.Script] = outcomes
	}
	return json.NewEncoder(os.Stdout).Encode(results)
}

// play returns the outcomes of the calls of one script.
func play(client longrunningpb.OperationsClient, control *control, parent string, steps []string) ([]string, error) {
	name := parent + "/operations/ü 1"
	var outcomes []string
	for _, step := range steps {
		if slices.Contains(calls, step) {
			outcome, err := perform(client, step, name, parent)
			if err != nil {
				outcome = refused(err)
			}
			outcomes = append(outcomes, strings.ReplaceAll(outcome, `"`+name+`"`, "NAME"))
			continue
		}
		if step == "seen" {
			seen, err := control.send("seen", name, "")
			if err != nil {
				return nil, err
			}
			outcomes = append(outcomes, fmt.Sprint(seen))
			continue
		}
		event, argument, _ := strings.Cut(step, " ")
		names := []string{name}
		if many, err := strconv.Atoi(argument); err == nil && event == "start" {
			names = nil
			for n := range many {
				names = append(names, fmt.Sprintf("%s %d", name, n))
			}
		}
		for _, name := range names {
			if _, err := control.send(event, name, argument); err != nil {
				return nil, err
			}
		}
	}
	return outcomes, nil
}

// perform makes the call of a step, and returns its outcome.
func perform(client longrunningpb.OperationsClient, step, name, parent string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	get := func(ctx context.Context) (*longrunningpb.Operation, error) {
		return client.GetOperation(ctx, &longrunningpb.GetOperationRequest{Name: name})
	}
	cancelOperation := func() error {
		_, err := client.CancelOperation(ctx, &longrunningpb.CancelOperationRequest{Name: name})
		return err
	}
	switch step {
	case "get":
		operation, err := get(ctx)
		return state(operation), err
	case "get within 1s":
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		operation, err := get(ctx)
		if err != nil {
			return codeName(status.Code(err)), nil
		}
		return state(operation), nil
	case "cancel":
		return "ok", cancelOperation()
	case "delete":
		_, err := client.DeleteOperation(ctx, &longrunningpb.DeleteOperationRequest{Name: name})
		return "ok", err
	case "wait":
		operation, err := client.WaitOperation(ctx, &longrunningpb.WaitOperationRequest{
			Name:    name,
			Timeout: durationpb.New(5 * time.Second),
		})
		return state(operation), err
	case "list":
		return count(ctx, client, parent)
	case "cancel and result":
		if err := cancelOperation(); err != nil {
			return "", err
		}
	}
	for {
		operation, err := get(ctx)
		if err != nil || operation.Done {
			return outcome(operation, ""), err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// count returns the number of operations on all pages of a list.
func count(ctx context.Context, client longrunningpb.OperationsClient, parent string) (string, error) {
	request := &longrunningpb.ListOperationsRequest{Name: parent}
	count := 0
	for {
		page, err := client.ListOperations(ctx, request)
		if err != nil {
			return "", err
		}
		count += len(page.Operations)
		if page.NextPageToken == "" {
			return strconv.Itoa(count), nil
		}
		request.PageToken = page.NextPageToken
	}
}

// state describes an operation with the reasons of its error and of its metadata.
func state(operation *longrunningpb.Operation) string {
	progress := ""
	if operation.GetMetadata() != nil {
		progress = reason([]*anypb.Any{operation.Metadata})
	}
	return outcome(operation, reason(operation.GetError().GetDetails())) + progress
}

// outcome describes an operation, with why after its error.
func outcome(operation *longrunningpb.Operation, why string) string {
	switch result := operation.GetResult().(type) {
	case *longrunningpb.Operation_Error:
		if result.Error.Code == int32(code.Code_CANCELLED) {
			return "cancelled: " + result.Error.Message + why
		}
		return fmt.Sprintf("failed: %s %s%s", code.Code(result.Error.Code), result.Error.Message, why)
	case *longrunningpb.Operation_Response:
		var response durationpb.Duration
		if err := result.Response.UnmarshalTo(&response); err != nil {
			return err.Error()
		}
		return fmt.Sprintf("succeeded: %ds", response.Seconds)
	}
	if operation.GetDone() {
		return "done without result"
	}
	return "running"
}

// refused describes the status of a call.
func refused(err error) string {
	refusal := status.Convert(err)
	return fmt.Sprintf("%s %s%s", codeName(refusal.Code()), refusal.Message(), reason(refusal.Proto().GetDetails()))
}

// codeName returns the name of a code as google.rpc.Code has it.
func codeName(which codes.Code) string {
	return code.Code(which).String()
}

// reason returns the reason of the first ErrorInfo among packed messages.
func reason(details []*anypb.Any) string {
	for _, detail := range details {
		var info errdetails.ErrorInfo
		if detail.MessageIs(&info) && detail.UnmarshalTo(&info) == nil {
			return fmt.Sprintf(" [%s]", info.Reason)
		}
	}
	return ""
}

// control steers the emulator: lines of JSON over TCP, each answered with one.
type control struct {
	conn  net.Conn
	lines *bufio.Reader
}

func newControl(port string) (*control, error) {
	conn, err := net.Dial("tcp", "127.0.0.1:"+port)
	if err != nil {
		return nil, err
	}
	return &control{conn, bufio.NewReader(conn)}, nil
}

func (c *control) send(do, name, argument string) (any, error) {
	order := map[string]string{"do": do, "name": name, "argument": argument}
	if err := json.NewEncoder(c.conn).Encode(order); err != nil {
		return nil, err
	}
	line, err := c.lines.ReadBytes('\n')
	if err != nil {
		return nil, err
	}
	var answer any
	err = json.Unmarshal(line, &answer)
	return answer, err
}
