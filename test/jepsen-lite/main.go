// Jepsen-lite tortures a real cluster: node processes with real sockets and
// disks, behind proxies that cut, delay and lose on every path between them and
// their clients, and a nemesis that kills, pauses, moves and drains. What the
// clients saw is checked for linearizability, exactly-once effects, and single
// ownership.
//
// It needs no root, starts only its own children and takes them along when it
// ends, however it ends. Exit codes: 0 no violation, 1 it could not run, 2 wrong
// usage, 5 a violation.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/baton-cluster/baton/test/jepsen-lite/mesh"
	"github.com/baton-cluster/baton/test/jepsen-lite/nemesis"
	"github.com/baton-cluster/baton/test/jepsen-lite/netns"
)

// Exit codes.
const (
	exitOK        = 0
	exitFailed    = 1
	exitUsage     = 2
	exitViolation = 5
	exitNoSpaces  = 77 // of the run within the namespace, which could not begin
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(program(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// program is main with everything given, so that tests can run it.
func program(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, asJSON, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return exitOK
	}
	if err != nil {
		fmt.Fprintln(stderr, "jepsen-lite:", err)
		return exitUsage
	}
	if o.spaces && !o.inside {
		code, why := again(ctx, args, stdout, stderr)
		if why == nil {
			return code
		}
		o.spaces = false
		o.skipped = append(o.skipped, fmt.Sprintf("network namespaces and firewall: %v; proxies cut instead", why))
		fmt.Fprintln(stderr, "jepsen-lite: not done:", o.skipped[0])
	}
	r, err := run(ctx, o)
	if errors.Is(err, errNoSpaces) {
		fmt.Fprintln(stderr, "jepsen-lite:", err)
		return exitNoSpaces
	}
	if err != nil {
		fmt.Fprintln(stderr, "jepsen-lite:", err)
		return exitFailed
	}
	if asJSON {
		enc := json.NewEncoder(stdout)
		enc.SetIndent("", "  ")
		if err := enc.Encode(r); err != nil {
			fmt.Fprintln(stderr, "jepsen-lite:", err)
			return exitFailed
		}
	} else {
		print(stdout, r)
	}
	if !r.OK {
		return exitViolation
	}
	return exitOK
}

// again runs this program within a network namespace that ends with it. why tells
// that it could not begin.
func again(ctx context.Context, args []string, stdout, stderr io.Writer) (code int, why error) {
	if err := netns.Usable(); err != nil {
		return 0, err
	}
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, self, append([]string{"--inside"}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.Stdout, cmd.Stderr = stdout, stderr
	netns.Enter(cmd)
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	_ = cmd.Wait() // its exit code says how it went
	if code = cmd.ProcessState.ExitCode(); code == exitNoSpaces {
		return 0, errors.New("they cannot be made here; see above")
	}
	return code, nil
}

func parse(args []string, stderr io.Writer) (options, bool, error) {
	var o options
	var kinds string
	var asJSON, quiet bool
	f := flag.NewFlagSet("jepsen-lite", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&o.node, "node", "", "node program, as ./node builds it (default: built from this repository)")
	f.DurationVar(&o.duration, "duration", time.Minute, "how long load and faults last; healing and checking come on top")
	f.Uint64Var(&o.seed, "seed", 0, "what draws faults and load (0: a new one, which is printed)")
	f.IntVar(&o.nodes, "nodes", 3, "node processes; of an even number all but one vote")
	f.IntVar(&o.clients, "clients", 3, "client hosts")
	f.IntVar(&o.slots, "slots", 12, "sessions under load at a time")
	f.DurationVar(&o.think, "think", 20*time.Millisecond, "mean pause of a worker between its operations")
	f.StringVar(&kinds, "faults", "all", "comma-separated kinds of faults, all or none")
	f.StringVar(&o.dir, "keep", "", "put data and logs here, and leave them")
	f.StringVar(&o.page, "report", "", "write the report as one HTML page to this file (default: into the run's directory, if that stays)")
	f.BoolVar(&o.spaces, "namespaces", false, "give hosts network namespaces and a firewall, where this is root on a Linux that has them")
	f.BoolVar(&o.inside, "inside", false, "for itself: it runs in the namespace already")
	f.BoolVar(&asJSON, "json", false, "print the report as one JSON object")
	f.BoolVar(&quiet, "q", false, "no progress on standard error")
	if err := f.Parse(args); err != nil {
		return o, false, err
	}
	if !quiet {
		o.progress = stderr
	}
	for o.seed == 0 {
		o.seed = rand.Uint64N(1 << 32)
	}
	f.Visit(func(g *flag.Flag) {
		switch g.Name {
		case "namespaces", "nodes", "clients", "slots", "think", "faults":
			o.args = append(o.args, "--"+g.Name+"="+g.Value.String())
		}
	})
	o.args = append(o.args, fmt.Sprint("--seed=", o.seed))
	var err error
	o.kinds, err = parseKinds(kinds)
	if o.inside && kinds == "all" {
		o.kinds = append(slices.Clone(o.kinds), nemesis.LinkDown)
	}
	switch {
	case err != nil:
	case f.NArg() > 0:
		err = fmt.Errorf("%q is no flag", f.Arg(0))
	case o.duration < time.Second || o.nodes < 1 || o.nodes > mesh.NodesMax || o.clients < 1 || o.clients > mesh.ClientsMax || o.slots < 1 || o.think < 0:
		err = errors.New("want a duration of at least 1s, 1 to 50 nodes and clients, and at least one slot")
	}
	return o, asJSON, err
}

func parseKinds(s string) ([]nemesis.Kind, error) {
	switch s {
	case "all":
		return nemesis.Kinds, nil
	case "none":
		return nil, nil
	}
	var out []nemesis.Kind
	for _, k := range strings.Split(s, ",") {
		if !slices.Contains(nemesis.Kinds, nemesis.Kind(k)) {
			return nil, fmt.Errorf("no fault is called %q; there are %v", k, nemesis.Kinds)
		}
		out = append(out, nemesis.Kind(k))
	}
	return out, nil
}

// print is the report for people.
func print(w io.Writer, r report) {
	c := r.Counts
	fmt.Fprintf(w, "goroutines %d before, %d after; heap %.1f and %.1f MB; of the clients %d and %d goroutines\n",
		r.Size.Before.Goroutines, r.Size.After.Goroutines, float64(r.Size.Before.HeapBytes)/1e6, float64(r.Size.After.HeapBytes)/1e6,
		r.Size.ClientsBefore, r.Size.ClientsAfter)
	fmt.Fprintf(w, "seed %d, %.1f s, %d faults\n", r.Seed, float64(r.DurationUS)/1e6, len(r.Faults))
	fmt.Fprintf(w, "%d sessions over %d epochs, %d operations: %d writes acknowledged, %d unknown, %d failed; %d reads, %d under leases\n",
		r.Sessions, r.Epochs, r.Ops, c.Acked, c.Unknown, c.Failed, c.Reads, r.Leased)
	fmt.Fprintf(w, "%d short lives, %d streams with %.0f MB, %d cut; %d thefts tried\n",
		r.Tally.Lives, r.Tally.Streams, float64(r.Tally.StreamBytes)/1e6, r.Tally.StreamsCut, sum(r.Tally.Thefts))
	fmt.Fprintf(w, "latency p50 %.1f ms, p99 %.1f ms, longest %.1f ms\n",
		float64(r.LatencyUS.P50)/1e3, float64(r.LatencyUS.P99)/1e3, float64(r.LatencyUS.Max)/1e3)
	fmt.Fprintf(w, "lost %d, duplicated %d; %d serving intervals compared; state hashes of %d nodes at index %d\n",
		c.Lost, c.Duplicated, r.Servings, len(r.Verify.Hashes), r.Verify.Index)
	for i, v := range r.Violations {
		if i == 50 {
			fmt.Fprintf(w, "… and %d more\n", len(r.Violations)-i)
			break
		}
		fmt.Fprintln(w, "VIOLATION", v)
	}
	for _, what := range r.Skipped {
		fmt.Fprintln(w, "not done:", what)
	}
	if r.Page != "" {
		fmt.Fprintln(w, "report:", r.Page)
	}
	if !r.OK {
		fmt.Fprintf(w, "FAILED: %d violations; data and logs are in %s; again with\n%s\n", len(r.Violations), r.Dir, replay(r))
		return
	}
	fmt.Fprintln(w, "OK: no violation")
}

func sum(counts map[string]int) (n int) {
	for _, c := range counts {
		n += c
	}
	return n
}
