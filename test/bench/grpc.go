package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// echoArg as the first argument makes this program the echo server that Baton's
// echo is measured beside. It is for the program's own use.
const echoArg = "peer-echo"

const echoMethod = "/bench.Echo/Echo"

// grpcSide is one grpc-go server, this program run once more: unary calls,
// without encryption. (Baton's calls are encrypted, and reach a session.)
type grpcSide struct {
	nodes
	addr string
}

func (g *grpcSide) name() string { return "grpc-go" }

func (g *grpcSide) start(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	bin, err := os.Executable()
	if err != nil {
		return err
	}
	ports, err := freePorts(1)
	if err != nil {
		return err
	}
	g.addr = ports[0]
	if err := g.spawn(bin, []string{echoArg, "-listen", g.addr}, filepath.Join(dir, "echo.log")); err != nil {
		return err
	}
	return g.await(ctx, func(ctx context.Context) error {
		l, err := g.load(ctx, 1, 1, 0, []byte("hello"))
		if err != nil {
			return err
		}
		defer l.close()
		ctx, cancel := context.WithTimeout(ctx, askTime)
		defer cancel()
		return l.do(opEcho)(ctx, 0)
	})
}

func (g *grpcSide) counters(context.Context) (counters, error) { return counters{}, nil }

// grpcLoad is clients that share connections.
type grpcLoad struct {
	value []byte
	conns []*grpc.ClientConn
}

func (g *grpcSide) load(_ context.Context, _, conns, _ int, value []byte) (load, error) {
	l := &grpcLoad{value: value}
	for range conns {
		c, err := grpc.NewClient(g.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			l.close()
			return nil, err
		}
		l.conns = append(l.conns, c)
	}
	return l, nil
}

func (l *grpcLoad) do(op string) func(ctx context.Context, client int) error {
	if op != opEcho {
		return nil
	}
	return func(ctx context.Context, client int) error {
		out := &wrapperspb.BytesValue{}
		err := l.conns[client%len(l.conns)].Invoke(ctx, echoMethod, &wrapperspb.BytesValue{Value: l.value}, out)
		if err == nil && !bytes.Equal(out.GetValue(), l.value) {
			err = fmt.Errorf("an echo of %d bytes had %d", len(l.value), len(out.GetValue()))
		}
		return err
	}
}

func (l *grpcLoad) close() {
	for _, c := range l.conns {
		_ = c.Close()
	}
}

// echoService is the service without generated code: one message, one method.
var echoService = grpc.ServiceDesc{
	ServiceName: "bench.Echo",
	HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{
		MethodName: "Echo",
		Handler: func(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			in := &wrapperspb.BytesValue{}
			return in, decode(in)
		},
	}},
}

// echoServer serves until it is killed or told to stop.
func echoServer(ctx context.Context, args []string, stderr io.Writer) int {
	var listen string
	f := flag.NewFlagSet(echoArg, flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&listen, "listen", "", "host:port")
	if err := f.Parse(args); err != nil {
		return exitUsage
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return exitFailed
	}
	s := grpc.NewServer()
	s.RegisterService(&echoService, nil)
	stop := context.AfterFunc(ctx, s.Stop)
	defer stop()
	if err := s.Serve(l); err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return exitFailed
	}
	return exitOK
}
