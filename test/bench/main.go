// Bench measures Baton beside etcd, and its echo beside grpc-go's, in one run on
// one machine: three nodes of each as processes (of grpc-go one), their disks
// synced, the same load from this process on both, in turn. It prints figures and, first of all, their ratios: absolute
// figures say as much about the machine as about the programs.
//
// It starts only its own children and takes them along when it ends, however it
// ends. Exit codes: 0 measured, 1 it could not, 2 wrong usage.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// memberArg as the first argument makes this program a member of the peer's
// cluster. It is for the program's own use.
const memberArg = "peer-member"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(os.Args) > 1 && os.Args[1] == memberArg {
		os.Exit(member(ctx, os.Args[2:], os.Stderr))
	}
	if len(os.Args) > 1 && os.Args[1] == echoArg {
		os.Exit(echoServer(ctx, os.Args[2:], os.Stderr))
	}
	os.Exit(program(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// options are the settings of a run.
type options struct {
	Ops        []string `json:"ops"`
	Clients    int      `json:"clients"`
	Conns      int      `json:"conns"`
	ValueBytes int      `json:"value_bytes"`
	Turns      int      `json:"turns"`

	// Against, if set, is another build of the node program that takes etcd's
	// place: for what a change is worth.
	Against string `json:"against,omitempty"`

	baton          string
	dir            string // "": a temporary one, which goes with the run
	duration, warm time.Duration
	limit          time.Duration
	benchstat      string
	progress       io.Writer // nil: none
}

// The operations. Each is a closed loop of clients with one outstanding request.
const (
	opPut = "put" // a durable write
	opGet = "get" // a linearizable read
	// opPut1 is put by one client on one connection to the leader: its latency is
	// what a commit takes when nothing else is going on.
	opPut1 = "put1"
	// opPutFollower is put1 at another node than the leader: of Baton, which owns
	// the session.
	opPutFollower = "putfollower"
	// opGetLog is a read that Baton confirms through its log, whatever lease its
	// owner has; of etcd it is get.
	opGetLog = "getlog"
	// opEcho is a call that touches no state, beside a unary call of grpc-go.
	opEcho = "echo"
)

var allOps = []string{opPut, opGet, opGetLog, opPut1, opPutFollower, opEcho}

const (
	// startBudget is the part of the limit kept for starting six nodes and for
	// opening the clients.
	startBudget = 25 * time.Second
	clientsMax  = 10_000
	valueMax    = 512 << 10
)

// measures is how long all turns take.
func (o *options) measures() time.Duration {
	return time.Duration(len(o.Ops)*o.Turns*2) * (o.duration + o.warm)
}

// program is main with everything given, so that tests can run it.
func program(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, asJSON, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return exitOK
	}
	if err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return exitUsage
	}
	r, err := run(ctx, o)
	if err == nil && o.benchstat != "" {
		err = writeBenchstat(o.benchstat, r)
	}
	if err == nil && asJSON {
		enc := json.NewEncoder(stdout)
		enc.SetIndent("", "  ")
		err = enc.Encode(r)
	}
	if err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return exitFailed
	}
	if !asJSON {
		print(stdout, r)
	}
	return exitOK
}

func parse(args []string, stderr io.Writer) (options, bool, error) {
	var o options
	var ops string
	var asJSON, quiet bool
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&ops, "ops", strings.Join([]string{opPut, opGet, opPut1}, ","), "comma-separated operations to measure, in this order: "+strings.Join(allOps, ", "))
	f.IntVar(&o.Clients, "clients", 64, "clients, each with one request outstanding")
	f.IntVar(&o.Conns, "conns", 8, "connections that they share, spread over the nodes")
	f.IntVar(&o.ValueBytes, "value-bytes", 128, "size of values")
	f.IntVar(&o.Turns, "turns", 5, "turns of each side for each operation; medians are over turns")
	f.DurationVar(&o.duration, "duration", 2500*time.Millisecond, "how long a turn is measured")
	f.DurationVar(&o.warm, "warm-up", 500*time.Millisecond, "how long a turn runs before that")
	f.DurationVar(&o.limit, "limit", 2*time.Minute, "the whole run ends by then, finished or not")
	f.StringVar(&o.baton, "baton", "", "node program to measure (default: built from this repository)")
	f.StringVar(&o.Against, "against", "", "measure against this other build of the node program instead of etcd; memory: one whose log is kept nowhere")
	f.StringVar(&o.dir, "keep", "", "put data and logs here, and leave them")
	f.StringVar(&o.benchstat, "benchstat", "", "also write every turn to this file, in the form that benchstat reads")
	f.BoolVar(&asJSON, "json", false, "print the report as one JSON object")
	f.BoolVar(&quiet, "q", false, "no progress on standard error")
	if err := f.Parse(args); err != nil {
		return o, false, err
	}
	if !quiet {
		o.progress = stderr
	}
	o.Ops = strings.Split(ops, ",")
	return o, asJSON, o.check(f.Args())
}

// check reports all faults at once.
func (o *options) check(rest []string) error {
	var faults []error
	need := func(ok bool, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	}
	need(len(rest) == 0, "%q: there are only flags", rest)
	for _, op := range o.Ops {
		need(slices.Contains(allOps, op), "-ops: %q is not one of %s", op, strings.Join(allOps, ", "))
	}
	need(o.Clients >= 1 && o.Clients <= clientsMax, "-clients must be 1 to %d", clientsMax)
	need(o.Conns >= 1 && o.Conns <= o.Clients, "-conns must be 1 to -clients")
	need(o.ValueBytes >= 0 && o.ValueBytes <= valueMax, "-value-bytes must be 0 to %d", valueMax)
	need(o.Turns >= 1, "-turns must be at least 1")
	need(o.duration > 0 && o.warm >= 0, "-duration must be positive, -warm-up not negative")
	want := o.measures() + startBudget
	need(want <= o.limit, "-limit must be at least %s for these turns: measure less, or raise it", want)
	return errors.Join(faults...)
}
