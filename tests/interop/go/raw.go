package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"cloud.google.com/go/longrunning/autogen/longrunningpb"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
)

const getOperation = "/google.longrunning.Operations/GetOperation"

// errGoaway ends a connection after its GOAWAY was written.
var errGoaway = errors.New("closed after GOAWAY")

// rawServer answers GetOperation frame by frame, in ways that grpc-go's API cannot produce. The last
// segment of a name decides on the answer: see README.md.
type rawServer struct {
	mu sync.Mutex
	// requests has the number of requests of each name.
	requests map[string]int
}

func newRawServer() *rawServer {
	return &rawServer{requests: map[string]int{}}
}

func (s *rawServer) serve(listener net.Listener) error {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			// A client that closes its connection is no failure: the cases judge by the answers.
			if err := s.connection(conn); errors.Is(err, errGoaway) {
				drain(conn.(*net.TCPConn))
			}
		}()
	}
}

// drain closes a connection for writing, and discards what still comes. If it closed while there are
// bytes to read, it would send a RST, and the client could lose the GOAWAY.
func drain(conn *net.TCPConn) {
	if conn.CloseWrite() == nil && conn.SetReadDeadline(time.Now().Add(time.Second)) == nil {
		_, _ = io.Copy(io.Discard, conn)
	}
}

// connection serves the requests of one connection, one after the other.
func (s *rawServer) connection(conn net.Conn) error {
	reader := bufio.NewReader(conn)
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(reader, preface); err != nil {
		return err
	}
	if string(preface) != http2.ClientPreface {
		return fmt.Errorf("preface %q", preface)
	}
	c := &rawConn{framer: http2.NewFramer(conn, reader)}
	c.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	c.encoder = hpack.NewEncoder(&c.block)
	// Without a dynamic table, the encoder need not follow the client's SETTINGS.
	c.encoder.SetMaxDynamicTableSize(0)
	c.write(c.framer.WriteSettings())

	type request struct {
		fields []hpack.HeaderField
		body   []byte
	}
	open := map[uint32]*request{}
	for c.err == nil {
		frame, err := c.framer.ReadFrame()
		if err != nil {
			return err
		}
		stream := frame.Header().StreamID
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				c.write(c.framer.WriteSettingsAck())
			}
		case *http2.PingFrame:
			if !frame.IsAck() {
				c.write(c.framer.WritePing(true, frame.Data))
			}
		case *http2.RSTStreamFrame:
			delete(open, stream)
		case *http2.MetaHeadersFrame:
			// The fields are in the order in which they were sent.
			open[stream] = &request{fields: frame.Fields}
		case *http2.DataFrame:
			if length := frame.Length; length > 0 {
				c.write(c.framer.WriteWindowUpdate(0, length))
			}
			request := open[stream]
			if request == nil {
				continue
			}
			request.body = append(request.body, frame.Data()...)
			if frame.StreamEnded() {
				delete(open, stream)
				s.answer(c, stream, request.fields, request.body)
			}
		}
	}
	return c.err
}

// answer answers one request.
func (s *rawServer) answer(c *rawConn, stream uint32, fields []hpack.HeaderField, body []byte) {
	name, err := requestName(fields, body)
	if err != nil {
		c.trailersOnly(stream, code.Code_UNIMPLEMENTED, err.Error())
		return
	}
	if counted, ok := strings.CutPrefix(name, "count/"); ok {
		s.mu.Lock()
		asked := s.requests[counted]
		s.mu.Unlock()
		c.ok(stream, name, map[string]string{"asked": strconv.Itoa(asked)})
		return
	}
	s.mu.Lock()
	s.requests[name]++
	asked := s.requests[name]
	s.mu.Unlock()

	kind, argument := rawKind(name)
	switch kind {
	case "gzip":
		c.headers(stream, false, responseHeaders, "grpc-encoding", "gzip")
		c.message(stream, 1, compressed(operationOf(name, nil)))
		c.headers(stream, true, nil, "grpc-status", "0")
	case "flag0":
		c.headers(stream, false, responseHeaders, "grpc-encoding", "gzip")
		c.message(stream, 0, operationOf(name, nil))
		c.headers(stream, true, nil, "grpc-status", "0")
	case "two-messages":
		c.headers(stream, false, responseHeaders)
		c.message(stream, 0, operationOf(name, nil))
		c.message(stream, 0, operationOf(name, nil))
		c.headers(stream, true, nil, "grpc-status", "0")
	case "http503-trailers":
		c.headers(stream, false, []string{":status", "503", "content-type", "application/grpc"})
		c.headers(stream, true, nil, "grpc-status", "8", "grpc-message", "the quota is used up")
	case "goaway":
		c.write(c.framer.WriteGoAway(stream, http2.ErrCodeEnhanceYourCalm, []byte("too_many_pings")))
		c.write(errGoaway)
	case "stream-closed":
		c.write(c.framer.WriteRSTStream(stream, http2.ErrCodeStreamClosed))
	case "refused-once":
		if asked == 1 {
			c.write(c.framer.WriteRSTStream(stream, http2.ErrCodeRefusedStream))
		} else {
			c.ok(stream, name, nil)
		}
	case "headers-then-unavailable":
		c.headers(stream, false, responseHeaders)
		c.headers(stream, true, nil, "grpc-status", "14", "grpc-message", "after the headers")
	case "trailers-only-unavailable":
		if asked <= argument {
			c.trailersOnly(stream, code.Code_UNAVAILABLE, "Trailers-Only")
		} else {
			c.ok(stream, name, nil)
		}
	case "quota":
		if asked <= argument {
			c.trailersOnly(stream, code.Code_RESOURCE_EXHAUSTED, "the quota is used up",
				"grpc-status-details-bin", retryDetails(50*time.Millisecond))
		} else {
			c.ok(stream, name, nil)
		}
	case "quota-bare":
		c.trailersOnly(stream, code.Code_RESOURCE_EXHAUSTED, "the quota is used up")
	case "headers":
		c.ok(stream, name, received(fields))
	default:
		c.trailersOnly(stream, code.Code_NOT_FOUND, "unknown kind "+kind)
	}
}

// rawConn writes the frames of one connection. After the first error it writes no more.
type rawConn struct {
	framer  *http2.Framer
	encoder *hpack.Encoder
	block   bytes.Buffer
	err     error
}

var responseHeaders = []string{":status", "200", "content-type", "application/grpc"}

// ok writes an answer with an operation, whose metadata carries what the server saw.
func (c *rawConn) ok(stream uint32, name string, seen map[string]string) {
	c.headers(stream, false, responseHeaders)
	c.message(stream, 0, operationOf(name, seen))
	c.headers(stream, true, nil, "grpc-status", "0")
}

func (c *rawConn) trailersOnly(stream uint32, status code.Code, message string, more ...string) {
	more = append(more, "grpc-status", strconv.Itoa(int(status)), "grpc-message", message)
	c.headers(stream, true, responseHeaders, more...)
}

// headers writes a HEADERS frame. Its fields are names and values in turn.
func (c *rawConn) headers(stream uint32, end bool, first []string, more ...string) {
	c.block.Reset()
	for _, fields := range [][]string{first, more} {
		for n := 0; n < len(fields); n += 2 {
			c.write(c.encoder.WriteField(hpack.HeaderField{Name: fields[n], Value: fields[n+1]}))
		}
	}
	if c.err != nil {
		return
	}
	c.write(c.framer.WriteHeaders(http2.HeadersFrameParam{
		StreamID:      stream,
		BlockFragment: c.block.Bytes(),
		EndStream:     end,
		EndHeaders:    true,
	}))
}

// message writes a length-prefixed message in a DATA frame.
func (c *rawConn) message(stream uint32, flag byte, payload []byte) {
	if c.err == nil {
		c.write(c.framer.WriteData(stream, false, prefixed(flag, payload)))
	}
}

func (c *rawConn) write(err error) {
	if c.err == nil {
		c.err = err
	}
}

// prefixed returns a message with its Compressed-Flag and its length before it.
func prefixed(flag byte, payload []byte) []byte {
	message := binary.BigEndian.AppendUint32([]byte{flag}, uint32(len(payload)))
	return append(message, payload...)
}

// requestName returns the name that a GetOperation asks for.
func requestName(fields []hpack.HeaderField, body []byte) (string, error) {
	for _, field := range fields {
		if field.Name == ":path" && field.Value != getOperation {
			return "", fmt.Errorf("only GetOperation is served, not %s", field.Value)
		}
	}
	if len(body) < 5 || int(binary.BigEndian.Uint32(body[1:])) != len(body)-5 {
		return "", fmt.Errorf("not one message: %d bytes", len(body))
	}
	var request longrunningpb.GetOperationRequest
	err := proto.Unmarshal(body[5:], &request)
	return request.Name, err
}

var rawKinds = regexp.MustCompile(`^(.*?)(?:-(\d+))?$`)

// rawKind returns the kind and the number of the last segment of a name.
func rawKind(name string) (string, int) {
	match := rawKinds.FindStringSubmatch(name[strings.LastIndex(name, "/")+1:])
	if match == nil {
		return "", 0
	}
	return match[1], number(match[2])
}

// operationOf returns an encoded operation that is done.
func operationOf(name string, seen map[string]string) []byte {
	operation := &longrunningpb.Operation{
		Name:     name,
		Metadata: packed(&errdetails.ErrorInfo{Reason: "SEEN", Metadata: seen}),
		Done:     true,
		Result: &longrunningpb.Operation_Response{
			Response: packed(&durationpb.Duration{Seconds: 42}),
		},
	}
	return encoded(operation)
}

// received returns the names of a request's headers in the order in which they were sent, and
// user-agent.
func received(fields []hpack.HeaderField) map[string]string {
	var names []string
	seen := map[string]string{}
	for _, field := range fields {
		names = append(names, field.Name)
		if field.Name == "user-agent" {
			seen["user-agent"] = field.Value
		}
	}
	seen["names"] = strings.Join(names, " ")
	return seen
}

// retryDetails returns the value of grpc-status-details-bin with a RetryInfo.
func retryDetails(delay time.Duration) string {
	status := &rpcstatus.Status{
		Code:    int32(code.Code_RESOURCE_EXHAUSTED),
		Message: "the quota is used up",
		Details: []*anypb.Any{packed(&errdetails.RetryInfo{RetryDelay: durationpb.New(delay)})},
	}
	return base64.RawStdEncoding.EncodeToString(encoded(status))
}

func compressed(payload []byte) []byte {
	var buffer bytes.Buffer
	writer := gzip.NewWriter(&buffer)
	// unreachable: a Buffer takes all that is written
	if _, err := writer.Write(payload); err != nil {
		panic(err)
	}
	if err := writer.Close(); err != nil {
		panic(err)
	}
	return buffer.Bytes()
}

// encoded returns a message's bytes. It panics on a message that cannot be encoded, of which this
// program has none.
func encoded(message proto.Message) []byte {
	bytes, err := proto.Marshal(message)
	if err != nil {
		panic(err)
	}
	return bytes
}
