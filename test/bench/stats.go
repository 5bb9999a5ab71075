package main

import (
	"slices"
	"time"
)

// turn is what one turn of one side measured.
type turn struct {
	OpsPerS float64 `json:"ops_per_s"`
	// Latencies are in microseconds. P99CO is P99 with the requests that a closed
	// loop does not send while it waits ("coordinated omission").
	P50    int64 `json:"p50_us"`
	P99    int64 `json:"p99_us"`
	P99CO  int64 `json:"p99_corrected_us"`
	Max    int64 `json:"max_us"`
	Ops    int64 `json:"ops"`
	Failed int64 `json:"failed"`
	// Processor time per operation, in microseconds: of the three nodes, and of
	// this process, which makes the load.
	NodeCPU   float64 `json:"node_cpu_us_per_op"`
	ClientCPU float64 `json:"client_cpu_us_per_op"`
	// IdleCPU is the share of one processor that the other side used meanwhile.
	IdleCPU float64 `json:"idle_side_cpus"`
	// LogWrites per operation, synced, of all three nodes together.
	LogWrites float64 `json:"log_writes_per_op"`
	// EntryMean is how many commands a log entry carried; only ours tells.
	EntryMean float64  `json:"commands_per_entry,omitempty"`
	Batches   []bucket `json:"batches,omitempty"`
}

func newTurn(d driven, nodes, self, idle time.Duration, c counters) turn {
	ops := d.hist.TotalCount()
	per := func(v float64) float64 { return v / float64(ops) }
	t := turn{
		OpsPerS: float64(ops) / d.took.Seconds(), Ops: ops, Failed: d.failed,
		P50: d.hist.ValueAtQuantile(50), P99: d.hist.ValueAtQuantile(99), Max: d.hist.Max(),
		NodeCPU: per(float64(nodes.Microseconds())), ClientCPU: per(float64(self.Microseconds())),
		IdleCPU: idle.Seconds() / d.took.Seconds(), LogWrites: per(float64(c.LogWrites)), Batches: c.Histogram,
	}
	t.P99CO = corrected(d.hist, t.P50).ValueAtQuantile(99)
	if c.Entries > 0 {
		t.EntryMean = float64(c.Commands) / float64(c.Entries)
	}
	return t
}

// spread is a figure over turns.
type spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

// spreadOf is the zero spread of nothing.
func spreadOf(v []float64) spread {
	if len(v) == 0 {
		return spread{}
	}
	v = slices.Sorted(slices.Values(v))
	mid := len(v) / 2
	s := spread{Median: v[mid], Min: v[0], Max: v[len(v)-1]}
	if len(v)%2 == 0 {
		s.Median = (v[mid-1] + v[mid]) / 2
	}
	return s
}

// figure is one line of the table: a name, and how to read it off a turn.
type figure struct {
	name string
	of   func(*turn) float64
}

var figures = []figure{
	{"ops_per_s", func(t *turn) float64 { return t.OpsPerS }},
	{"p50_us", func(t *turn) float64 { return float64(t.P50) }},
	{"p99_us", func(t *turn) float64 { return float64(t.P99) }},
	{"p99_corrected_us", func(t *turn) float64 { return float64(t.P99CO) }},
	{"node_cpu_us_per_op", func(t *turn) float64 { return t.NodeCPU }},
	{"client_cpu_us_per_op", func(t *turn) float64 { return t.ClientCPU }},
	{"log_writes_per_op", func(t *turn) float64 { return t.LogWrites }},
}

// compared is a figure of both sides. Ratio is ours over the peer's, of the
// turns that followed one another: what else the machine did changes more from
// minute to minute than between two neighbours.
type compared struct {
	Name  string `json:"name"`
	Ours  spread `json:"ours"`
	Peer  spread `json:"peer"`
	Ratio spread `json:"ratio"`
}

func compare(f figure, ours, peer []turn) compared {
	var a, b, ratios []float64
	for i := range ours {
		x, y := f.of(&ours[i]), f.of(&peer[i])
		a, b = append(a, x), append(b, y)
		if y > 0 {
			ratios = append(ratios, x/y)
		}
	}
	return compared{Name: f.name, Ours: spreadOf(a), Peer: spreadOf(b), Ratio: spreadOf(ratios)}
}

// summarise makes an operation's report out of as many turns of both sides.
func summarise(clients, conns int, ours, peer []turn) *opReport {
	r := &opReport{Clients: clients, Conns: conns, Ours: ours, Peer: peer}
	for _, f := range figures {
		r.Figures = append(r.Figures, compare(f, ours, peer))
	}
	var entries, commands float64
	for _, t := range ours {
		for i, b := range t.Batches {
			if i == len(r.Batches) {
				r.Batches = append(r.Batches, bucket{Max: b.Max})
			}
			r.Batches[i].Entries += b.Entries
			entries += float64(b.Entries)
			commands += float64(b.Entries) * t.EntryMean
		}
	}
	if entries > 0 {
		r.EntryMean = commands / entries
	}
	for _, list := range [][]turn{ours, peer} {
		for _, t := range list {
			r.IdleCPUMax = max(r.IdleCPUMax, t.IdleCPU)
		}
	}
	return r
}
