package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"
)

// report is what a run found.
type report struct {
	Machine    machine              `json:"machine"`
	Settings   options              `json:"settings"`
	DurationUS int64                `json:"turn_us"`
	Ops        map[string]*opReport `json:"ops"`
}

// opReport is one operation's part: the figures of both sides, and every turn.
type opReport struct {
	PeerName string     `json:"peer_name"`
	Clients  int        `json:"clients"`
	Conns    int        `json:"conns"`
	Figures  []compared `json:"figures"`
	// EntryMean and Batches are of our log entries, in commands.
	EntryMean float64  `json:"commands_per_entry"`
	Batches   []bucket `json:"batches"`
	// IdleCPUMax is the most that an idle side used of one processor in any turn.
	IdleCPUMax float64 `json:"idle_side_cpus_max"`
	Ours       []turn  `json:"ours"`
	Peer       []turn  `json:"peer"`
}

// print is the report for people.
func print(w io.Writer, r report) {
	m, o := r.Machine, r.Settings
	fmt.Fprintf(w, "%s, %d processors, %s %s, %s, files on %s\n", m.CPU, m.Processors, m.OS, m.Kernel, m.Go, m.Disk)
	what := fmt.Sprintf("etcd %s (grpc-go, one process, for echo), whose links are not encrypted", m.Etcd)
	switch o.Against {
	case "":
	case againstMemory:
		what = "itself without a disk under its log"
	default:
		what = "another build of it"
	}
	fmt.Fprintf(w, "Baton and %s: three nodes each and the load on this machine, loopback, disks synced\n", what)
	fmt.Fprintf(w, "%d-byte values; %d turns of %s in turn; median (least to most); the ratio is ours to the other's, turn by turn\n",
		o.ValueBytes, o.Turns, time.Duration(r.DurationUS)*time.Microsecond)
	for _, op := range o.Ops {
		printOp(w, op, r.Ops[op])
	}
}

func printOp(w io.Writer, op string, r *opReport) {
	if r == nil {
		return
	}
	fmt.Fprintf(w, "\n%s, clients: %d, connections: %d\n", op, r.Clients, r.Conns)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "figure\tbaton\t%s\tratio\n", r.PeerName)
	for _, f := range r.Figures {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", f.Name, show(f.Ours), show(f.Peer), show(f.Ratio))
	}
	_ = tw.Flush()
	if r.EntryMean > 0 {
		fmt.Fprintf(w, "our log entries carried %.1f commands in the mean; by size", r.EntryMean)
		for _, b := range r.Batches {
			if b.Entries > 0 {
				fmt.Fprintf(w, " ≤%d:%d", b.Max, b.Entries)
			}
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintf(w, "an idle side used at most %.2f of a processor\n", r.IdleCPUMax)
}

func show(s spread) string {
	return fmt.Sprintf("%s (%s to %s)", number(s.Median), number(s.Min), number(s.Max))
}

// number shows three digits that matter.
func number(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func micros(us float64) string {
	return time.Duration(us * float64(time.Microsecond)).Round(time.Microsecond).String()
}

// writeBenchstat writes every turn as one line of a Go benchmark.
func writeBenchstat(path string, r report) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "goos: %s\ncpu: %s\n", r.Machine.OS, r.Machine.CPU)
	for _, op := range r.Settings.Ops {
		o := r.Ops[op]
		for _, s := range []struct {
			name  string
			turns []turn
		}{{"baton", o.Ours}, {o.PeerName, o.Peer}} {
			for _, t := range s.turns {
				fmt.Fprintf(&b, "Benchmark%s/clients=%d/conns=%d/side=%s %d %.0f ns/op %.1f ops/s %d p50-us %d p99-us %.2f node-cpu-us/op\n",
					op, o.Clients, o.Conns, s.name, t.Ops, 1e9/t.OpsPerS, t.OpsPerS, t.P50, t.P99, t.NodeCPU)
			}
		}
	}
	return os.WriteFile(path, b.Bytes(), 0o644)
}
