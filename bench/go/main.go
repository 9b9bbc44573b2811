// Command client is the grpc-go client of the benchmark. It starts the server, runs one measurement, and prints one
// line of key=value, as the Rust clients do:
//
//	client SERVER_BINARY key=value...
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	longrunning "cloud.google.com/go/longrunning/autogen"
	"cloud.google.com/go/longrunning/autogen/longrunningpb"
	"golang.org/x/sys/unix"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) < 2 {
		log.Fatal("usage: client SERVER_BINARY key=value...")
	}
	plan := parseOptions(os.Args[2:])
	if plan["threads"] == 1 {
		pin(0)
	}
	runtime.GOMAXPROCS(plan["threads"])
	server := startServer(os.Args[1], plan)
	ownBefore, allBefore := resident()
	cancel := connect(server)
	check(cancel(context.Background(), 0))
	switch {
	case plan["memory"] > 0:
		measureMemory(cancel, plan, ownBefore, allBefore)
	case plan["offered"] > 0:
		measureOpenLoop(cancel, plan)
	default:
		measureClosedLoop(cancel, server, plan)
	}
	server.stop()
}

// check exits with the error, if there is one. The server then ends too, as its standard input is closed.
func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func must[T any](value T, err error) T {
	check(err)
	return value
}

// options are the options of a measurement, by name.
type options map[string]int

func parseOptions(args []string) options {
	parsed := options{
		"concurrency": 64, "threads": 1, "delay": 0, "streams": 0, "tls": 0,
		"millis": 1000, "calls": 0, "bulk": 0, "memory": 0, "offered": 0, "timeout": 100,
	}
	for _, arg := range args {
		key, value, _ := strings.Cut(arg, "=")
		if _, known := parsed[key]; !known {
			log.Fatalf("invalid option %q: expected one of the options of the Rust clients", arg)
		}
		parsed[key] = must(strconv.Atoi(value))
	}
	return parsed
}

func (o options) duration(key string) time.Duration {
	return time.Duration(o[key]) * time.Millisecond
}

// pin restricts the process to a core, if it exists. The kernel sets the affinity of a single thread, but the runtime has
// already started several, so the program executes itself again: the new threads inherit the affinity.
func pin(core int) {
	var cores, current unix.CPUSet
	cores.Set(core)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if unix.SchedGetaffinity(0, &current) == nil && current != cores && unix.SchedSetaffinity(0, &cores) == nil {
		check(syscall.Exec("/proc/self/exe", os.Args, os.Environ()))
	}
}

// cancelFunc cancels the operation with a number, modulo 4,096.
type cancelFunc func(ctx context.Context, number int) error

func connect(server *process) cancelFunc {
	transport := insecure.NewCredentials()
	if server.certificate != "" {
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM([]byte(server.certificate))
		transport = credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: "localhost"})
	}
	conn := must(grpc.NewClient(server.address,
		grpc.WithTransportCredentials(transport), grpc.WithPerRPCCredentials(token)))
	client := must(longrunning.NewOperationsClient(context.Background(), option.WithGRPCConn(conn)))
	return func(ctx context.Context, number int) error {
		name := names[number%len(names)]
		return client.CancelOperation(ctx, &longrunningpb.CancelOperationRequest{Name: name})
	}
}

var names = func() (names [4096]string) {
	for i := range names {
		names[i] = fmt.Sprintf("operations/projects/p/locations/us-central1/ICN%08d", i*7919)
	}
	return names
}()

// token is the value of the authorization header: the token that the Rust clients send.
var token = func() bearer {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	state, token := uint32(1), []byte("ya29.")
	for len(token) < 1024 {
		state = state*1664525 + 1013904223
		token = append(token, letters[state>>26])
	}
	return "Bearer " + bearer(token)
}()

type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": string(b)}, nil
}

func (b bearer) RequireTransportSecurity() bool { return false }

// measureClosedLoop prints the figures of workers that each start a call when their previous one has completed.
func measureClosedLoop(cancel cancelFunc, server *process, plan options) {
	latencies := make([][]time.Duration, plan["concurrency"])
	for i := range latencies {
		latencies[i] = make([]time.Duration, 0, 1<<16/len(latencies))
	}
	load := func(more func(elapsed time.Duration) bool) {
		var group sync.WaitGroup
		for worker := range latencies {
			group.Go(func() {
				own, start := latencies[worker][:0], time.Now()
				called := start
				for number := worker * 61; more(called.Sub(start)); number++ {
					check(cancel(context.Background(), number))
					answered := time.Now()
					own = append(own, answered.Sub(called))
					called = answered
				}
				latencies[worker] = own
			})
		}
		group.Wait()
	}
	warm, more := within(250*time.Millisecond), within(plan.duration("millis"))
	switch {
	case plan["calls"] > 0:
		warm, more = inTotal(8*len(latencies)), inTotal(plan["calls"])
	case plan["bulk"] > 0:
		warm, more = inTotal(0), inTotal(plan["bulk"])
	}
	load(warm)
	before := takeSample(server)
	load(more)
	takeSample(server).print(before)
	if plan["calls"]+plan["bulk"] > 0 {
		return
	}
	all := slices.Concat(latencies...)
	slices.Sort(all)
	quantile := func(share float64) float64 { return micros(all[int(float64(len(all)-1)*share)]) }
	fmt.Printf("p50=%g p99=%g p999=%g\n", quantile(0.5), quantile(0.99), quantile(0.999))
}

// within lets each worker start calls for some time.
func within(limit time.Duration) func(time.Duration) bool {
	return func(elapsed time.Duration) bool { return elapsed < limit }
}

// inTotal lets all workers together make a number of calls.
func inTotal(calls int) func(time.Duration) bool {
	var made atomic.Int64
	return func(time.Duration) bool { return made.Add(1) <= int64(calls) }
}

// measureOpenLoop starts calls at a fixed rate, whether or not earlier ones have completed. A call is good if it
// succeeds before its deadline, which is the timeout after the time at which it is due. Calls that are due in the
// warm-up are not counted.
func measureOpenLoop(cancel cancelFunc, plan options) {
	const warmUp = 500 * time.Millisecond
	rate, timeout, window := plan["offered"], plan.duration("timeout"), plan.duration("millis")
	first := int(warmUp * time.Duration(rate) / time.Second)
	end := int((warmUp + window) * time.Duration(rate) / time.Second)
	start := time.Now()
	due := func(number int) time.Time {
		return start.Add(time.Duration(number) * time.Second / time.Duration(rate))
	}
	var good, refused atomic.Int64
	call := func(number int) {
		deadline := due(number).Add(timeout)
		ctx, stop := context.WithDeadline(context.Background(), deadline)
		defer stop()
		err := cancel(ctx, number)
		// A backoff that the deadline interrupts returns the error of the context, which has no status.
		expired := errors.Is(err, context.DeadlineExceeded) || status.Code(err) == codes.DeadlineExceeded
		switch {
		case number < first:
		case !time.Now().Before(deadline) || expired:
		case err != nil:
			refused.Add(1)
		default:
			good.Add(1)
		}
	}
	over := due(end).Add(timeout)
	for next := 0; next < end && time.Now().Before(over); {
		time.Sleep(time.Millisecond)
		for now := time.Now(); next < end && due(next).Before(now); next++ {
			go call(next)
		}
	}
	time.Sleep(time.Until(over))
	// All other calls are late, including those still in flight or not yet started.
	late := int64(end-first) - good.Load() - refused.Load()
	perSecond := func(calls int64) float64 { return float64(calls) / window.Seconds() }
	fmt.Printf("offered=%g goodput=%g refused=%g late=%g\n",
		perSecond(int64(end-first)), perSecond(good.Load()), perSecond(refused.Load()), perSecond(late))
}

// measureMemory prints the memory of an idle client, and that of each call in flight.
func measureMemory(cancel cancelFunc, plan options, ownBefore, allBefore int) {
	ownIdle, allIdle := resident()
	calls := plan["concurrency"]
	var group sync.WaitGroup
	var answered atomic.Int64
	for i := range calls {
		group.Go(func() {
			check(cancel(context.Background(), i))
			answered.Add(1)
		})
	}
	// By then, all calls have been sent, and none has been answered.
	time.Sleep(plan.duration("delay") - 500*time.Millisecond)
	ownBusy, _ := resident()
	if answered.Load() > 0 {
		log.Fatal("a call was answered before the memory was measured")
	}
	group.Wait()
	fmt.Printf("idle=%d idle_all=%d in_flight=%g\n",
		ownIdle-ownBefore, allIdle-allBefore, float64(ownBusy-ownIdle)/float64(calls))
}

// resident returns the resident memory of this process in bytes: its anonymous pages, and all pages, including those of
// the program file.
func resident() (own, all int) {
	for line := range strings.Lines(string(must(os.ReadFile("/proc/self/status")))) {
		switch fields := strings.Fields(line); fields[0] {
		case "RssAnon:":
			own = must(strconv.Atoi(fields[1])) << 10
		case "VmRSS:":
			all = must(strconv.Atoi(fields[1])) << 10
		}
	}
	return own, all
}

// sample has the counters of this process and of the server.
type sample struct {
	at              time.Time
	cpu, serverCPU  time.Duration
	memory          runtime.MemStats
	calls, received int
}

func takeSample(server *process) (s sample) {
	must(io.WriteString(server.stdin, "\n"))
	line := must(server.stdout.ReadString('\n'))
	must(fmt.Sscanf(line, "calls=%d bytes=%d cpu=%d", &s.calls, &s.received, &s.serverCPU))
	runtime.ReadMemStats(&s.memory)
	var usage syscall.Rusage
	check(syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	s.cpu = time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
	s.at = time.Now()
	return s
}

// print prints the figures of the calls since an earlier sample.
func (s sample) print(start sample) {
	calls := float64(s.calls - start.calls)
	fmt.Printf("calls=%g rate=%g cpu=%g server_cpu=%g sent=%g allocations=%g allocated=%g\n",
		calls, calls/s.at.Sub(start.at).Seconds(), micros(s.cpu-start.cpu)/calls,
		micros(s.serverCPU-start.serverCPU)/calls, float64(s.received-start.received)/calls,
		float64(s.memory.Mallocs-start.memory.Mallocs)/calls,
		float64(s.memory.TotalAlloc-start.memory.TotalAlloc)/calls)
}

func micros(duration time.Duration) float64 {
	return float64(duration.Nanoseconds()) / 1e3
}

// process is the server process. It ends when its standard input is closed.
type process struct {
	command *exec.Cmd
	stdin   io.WriteCloser
	stdout  *bufio.Reader
	address string
	// certificate is in PEM; empty without TLS.
	certificate string
}

func startServer(binary string, plan options) *process {
	command := exec.Command(binary, "server")
	command.Stderr = os.Stderr
	for _, key := range []string{"delay", "streams", "tls"} {
		command.Args = append(command.Args, fmt.Sprintf("%s=%d", key, plan[key]))
	}
	stdin, stdout := must(command.StdinPipe()), must(command.StdoutPipe())
	check(command.Start())
	p := &process{command: command, stdin: stdin, stdout: bufio.NewReader(stdout)}
	for {
		line := must(p.stdout.ReadString('\n'))
		switch key, value, _ := strings.Cut(line, "="); {
		case line == "\n":
			return p
		case key == "grpc":
			p.address = strings.TrimSpace(value)
		case key != "rest":
			p.certificate += line
		}
	}
}

func (p *process) stop() {
	check(p.stdin.Close())
	check(p.command.Wait())
}
