package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/baton-cluster/baton/test/jepsen-lite/proc"
)

func TestSpread(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want spread
	}{
		{nil, spread{}},
		{[]float64{7}, spread{7, 7, 7}},
		{[]float64{3, 1, 2}, spread{2, 1, 3}},
		{[]float64{4, 1, 3, 2}, spread{2.5, 1, 4}},
	} {
		if got := spreadOf(c.in); got != c.want {
			t.Errorf("spreadOf(%v) = %v, want %v", c.in, got, c.want)
		}
	}
	in := []float64{3, 1, 2}
	spreadOf(in)
	if !slices.Equal(in, []float64{3, 1, 2}) {
		t.Error("spreadOf reordered its argument")
	}
}

// TestRatiosPairTurns: the machine was half as fast in the second pair of
// turns; ours was twice as fast as the peer in each, and that is the ratio.
func TestRatiosPairTurns(t *testing.T) {
	ours, peer := []turn{{OpsPerS: 2000}, {OpsPerS: 1000}}, []turn{{OpsPerS: 1000}, {OpsPerS: 500}}
	r := summarise(64, 8, ours, peer)
	f := r.Figures[0]
	if f.Name != "ops_per_s" || f.Ratio != (spread{2, 2, 2}) || f.Ours.Median != 1500 || f.Peer.Median != 750 {
		t.Errorf("%+v", f)
	}
	if none := compare(figures[len(figures)-1], ours, peer); none.Ratio != (spread{}) {
		t.Errorf("a ratio to nothing: %+v", none)
	}
}

func TestSummariseAddsBatches(t *testing.T) {
	a := turn{EntryMean: 3, IdleCPU: 0.1, Batches: []bucket{{1, 2}, {3, 2}}}
	b := turn{EntryMean: 6, Batches: []bucket{{1, 0}, {3, 1}, {7, 3}}}
	r := summarise(1, 1, []turn{a, b}, []turn{{IdleCPU: 0.2}, {}})
	if want := []bucket{{1, 2}, {3, 3}, {7, 3}}; !slices.Equal(r.Batches, want) {
		t.Errorf("batches %v, want %v", r.Batches, want)
	}
	if r.EntryMean != 4.5 || r.IdleCPUMax != 0.2 {
		t.Errorf("mean %v, idle %v", r.EntryMean, r.IdleCPUMax)
	}
}

func TestSince(t *testing.T) {
	before := counters{LogWrites: 5, Entries: 2, Commands: 3, Histogram: []bucket{{1, 2}}}
	after := counters{LogWrites: 9, Entries: 4, Commands: 9, Histogram: []bucket{{1, 3}, {3, 1}}}
	d := after.since(before)
	if d.LogWrites != 4 || d.Entries != 2 || d.Commands != 6 || !slices.Equal(d.Histogram, []bucket{{1, 1}, {3, 1}}) {
		t.Errorf("%+v", d)
	}
}

// TestCorrected: one request in a hundred took 100 ms where 1 ms is usual; its
// client would have sent 99 more meanwhile.
func TestCorrected(t *testing.T) {
	h := newHistogram()
	must(t, h.RecordValues(1000, 99))
	must(t, h.RecordValue(100_000))
	c := corrected(h, 1000)
	if n := c.TotalCount(); n < 198 || n > 200 {
		t.Errorf("%d values, want about 199", n)
	}
	if p := c.ValueAtQuantile(90); p < 70_000 {
		t.Errorf("p90 %d µs hides the stall", p)
	}
	if same := corrected(h, 0); same.TotalCount() != h.TotalCount() {
		t.Errorf("without an interval %d values became %d", h.TotalCount(), same.TotalCount())
	}
}

func TestNewTurn(t *testing.T) {
	h := newHistogram()
	must(t, h.RecordValues(1000, 500))
	got := newTurn(driven{hist: h, took: 2 * time.Second}, 50*time.Millisecond, 25*time.Millisecond, time.Second, counters{LogWrites: 50, Entries: 10, Commands: 500})
	if got.OpsPerS != 250 || got.NodeCPU != 100 || got.ClientCPU != 50 || got.IdleCPU != 0.5 || got.LogWrites != 0.1 || got.EntryMean != 50 {
		t.Errorf("%+v", got)
	}
	if math.Abs(float64(got.P50)-1000) > 2 {
		t.Errorf("p50 %d", got.P50)
	}
}

func TestDriveCountsAndGivesUp(t *testing.T) {
	d, err := drive(context.Background(), 3, 20*time.Millisecond, func(context.Context, int) error {
		time.Sleep(time.Millisecond)
		return nil
	})
	must(t, err)
	if d.hist.TotalCount() < 3 || d.failed != 0 {
		t.Errorf("%d operations, %d failed", d.hist.TotalCount(), d.failed)
	}
	broken := errors.New("broken")
	if _, err = drive(context.Background(), 2, time.Millisecond, func(context.Context, int) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("a load that always fails: %v", err)
	}
}

func TestOptions(t *testing.T) {
	o, asJSON, err := parse([]string{"-json", "-clients", "512", "-conns", "16", "-ops", "get"}, io.Discard)
	must(t, err)
	if !asJSON || o.Clients != 512 || o.Conns != 16 || !slices.Equal(o.Ops, []string{opGet}) {
		t.Errorf("%+v", o)
	}
	if _, _, err = parse(nil, io.Discard); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	_, _, err = parse([]string{"-clients", "0", "-ops", "put,push", "-turns", "1000"}, io.Discard)
	for _, want := range []string{"-clients", "push", "-limit"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
	if code := program(context.Background(), []string{"-conns", "0"}, io.Discard, io.Discard); code != exitUsage {
		t.Errorf("exit code %d", code)
	}
}

func TestReportPrints(t *testing.T) {
	r := report{Settings: options{Ops: []string{opPut}, Turns: 1}, Ops: map[string]*opReport{
		opPut: summarise(64, 8, []turn{{OpsPerS: 3000, Ops: 9, EntryMean: 2, Batches: []bucket{{1, 0}, {3, 5}}}}, []turn{{OpsPerS: 1000, Ops: 3}}),
	}}
	var out bytes.Buffer
	print(&out, r)
	for _, want := range []string{"3.00 (3.00 to 3.00)", "≤3:5"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, out.String())
		}
	}
	path := filepath.Join(t.TempDir(), "turns.txt")
	must(t, writeBenchstat(path, r))
	b, err := os.ReadFile(path)
	must(t, err)
	if n := bytes.Count(b, []byte("Benchmarkput/clients=64/conns=8/side=")); n != 2 {
		t.Errorf("%d lines:\n%s", n, b)
	}
}

// TestMemoryReplacesALine: the build without a disk goes by the source's text.
func TestMemoryReplacesALine(t *testing.T) {
	root, err := proc.Root()
	must(t, err)
	text, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(diskFile)))
	must(t, err)
	if n := strings.Count(string(text), diskLine); n != 1 {
		t.Errorf("%s holds the line %d times", diskFile, n)
	}
}

func TestSystemFiles(t *testing.T) {
	if d := statCPU([]byte("42 (a) b) R 1 1 1 0 -1 4194304 100 0 0 0 250 50 0 0 20 0")); d != 3*time.Second {
		t.Errorf("stat: %v", d)
	}
	if d := statCPU([]byte("nonsense")); d != 0 {
		t.Errorf("nonsense: %v", d)
	}
	mounts := "/dev/a / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n"
	for dir, want := range map[string]string{"/tmp": "tmpfs", "/tmp/x": "tmpfs", "/tmpx": "ext4"} {
		if got := fileSystem(mounts, dir); got != want {
			t.Errorf("%s: %s, want %s", dir, got, want)
		}
	}
	n, err := sumMetrics(strings.NewReader("# HELP a\na_count 3\nb_count 2e+01\nab_count 7\n"), "a_count", "b_count")
	must(t, err)
	if n != 23 {
		t.Errorf("metrics: %d", n)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
