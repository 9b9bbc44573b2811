// Command interop is the Go side of the interop tests: servers for our client, and a client of the emulator.
//
//	interop server CERTS            serves operations on grpc-go, and answers that grpc-go never sends
//	interop scripts PORT CONTROL    prints the outcome of each script on the steered emulator
//	interop requests PORT           sends the emulator requests that no gRPC client sends
package main

import (
	"fmt"
	"os"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "server":
		return serve(args[1])
	case len(args) == 3 && args[0] == "scripts":
		return scripts(args[1], args[2])
	case len(args) == 2 && args[0] == "requests":
		return requests(args[1])
	}
	return fmt.Errorf("unknown arguments %q: see tests/interop/run", args)
}
