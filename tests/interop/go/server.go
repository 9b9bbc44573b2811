package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"time"

	"cloud.google.com/go/longrunning/autogen/longrunningpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

// serve starts the servers on free ports of 127.0.0.1, prints the ports as one line of JSON, and
// returns when a server fails.
func serve(certs string) error {
	service := newService()
	failed := make(chan error)
	ports := map[string]int{}
	start := func(name string, run func(net.Listener) error) error {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		ports[name] = listener.Addr().(*net.TCPAddr).Port
		go func() { failed <- fmt.Errorf("%s: %w", name, run(listener)) }()
		return nil
	}

	tlsOf := func(certificate string, clientCA bool) (grpc.ServerOption, error) {
		config, err := tlsConfig(certs, certificate, clientCA)
		return grpc.Creds(credentials.NewTLS(config)), err
	}
	server, err := tlsOf("server", false)
	if err != nil {
		return err
	}
	mutual, err := tlsOf("server", true)
	if err != nil {
		return err
	}
	elsewhere, err := tlsOf("elsewhere", false)
	if err != nil {
		return err
	}
	for name, option := range map[string]grpc.ServerOption{
		"plain":     grpc.EmptyServerOption{},
		"tls":       server,
		"mtls":      mutual,
		"elsewhere": elsewhere,
		// This option is deprecated, but its successor compresses only for a client that accepts gzip.
		"gzip":   grpc.RPCCompressor(grpc.NewGZIPCompressor()),
		"narrow": grpc.MaxConcurrentStreams(10),
		"aging": grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionAge:      300 * time.Millisecond,
			MaxConnectionAgeGrace: 2 * time.Second,
		}),
	} {
		server := grpc.NewServer(option, grpc.MaxRecvMsgSize(math.MaxInt32), grpc.MaxSendMsgSize(math.MaxInt32))
		longrunningpb.RegisterOperationsServer(server, service)
		if err := start(name, server.Serve); err != nil {
			return err
		}
	}
	if err := start("raw", newRawServer().serve); err != nil {
		return err
	}

	line, err := json.Marshal(ports)
	if err != nil {
		return err
	}
	fmt.Println(string(line))
	return <-failed
}

// tlsConfig returns the settings of a server with a certificate of the folder. With clientCA, it
// requires a client certificate of the private CA.
func tlsConfig(certs, certificate string, clientCA bool) (*tls.Config, error) {
	file := func(name string) string { return filepath.Join(certs, name) }
	pair, err := tls.LoadX509KeyPair(file(certificate+".pem"), file(certificate+".key"))
	if err != nil {
		return nil, err
	}
	config := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	if clientCA {
		pem, err := os.ReadFile(file("ca.pem"))
		if err != nil {
			return nil, err
		}
		config.ClientCAs = x509.NewCertPool()
		config.ClientCAs.AppendCertsFromPEM(pem)
		config.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return config, nil
}
