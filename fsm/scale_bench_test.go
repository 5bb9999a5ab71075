package fsm

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/baton-cluster/baton/wire"
)

// scaleStep is how many sessions an entry opens, and how many writes one has.
const scaleStep = 64

// crowd is an FSM with many sessions that look like clients' own: ids, secrets,
// nonces and client instances of the usual lengths, a state of one key and 64
// bytes, attached once, acknowledged, and detached again.
type crowd struct {
	f     *FSM
	index uint64
	seqs  []uint64
	value []byte
}

func (c *crowd) id(i int) string { return fmt.Sprintf("%016x", uint64(i)*0x9e3779b97f4a7c15) }

// key makes n bytes that differ between sessions and purposes.
func (c *crowd) key(i, purpose, n int) []byte {
	rng := rand.New(rand.NewPCG(uint64(i), uint64(purpose)))
	b := make([]byte, n)
	for j := range b {
		b[j] = byte(rng.Uint32())
	}
	return b
}

func (c *crowd) apply(b *testing.B, cmds ...*wire.Command) time.Duration {
	c.index++
	data := encode(b, cmds...)
	begun := time.Now()
	results := c.f.Apply(&raft.Log{Index: c.index, Data: data}).([]*wire.Result)
	took := time.Since(begun)
	for i, res := range results {
		if res.GetCode() != wire.Code_OK {
			b.Fatalf("%v: %v", cmds[i], res)
		}
	}
	return took
}

// newCrowd opens n sessions; the first active of them stay attached.
func newCrowd(b *testing.B, n, active int) *crowd {
	c := &crowd{f: New(nil), seqs: make([]uint64, active), value: make([]byte, 64)}
	c.apply(b, initCommands()...)
	for from := 0; from < n; from += scaleStep {
		var cmds []*wire.Command
		for i := from; i < min(n, from+scaleStep); i++ {
			epoch, client := uint64(i)+2, c.key(i, 1, wire.IDBytes)
			cmds = append(cmds,
				&wire.Command{Kind: &wire.Command_Open{Open: &wire.OpenSession{
					Session: c.id(i), Nonce: c.key(i, 2, wire.IDBytes), SecretHash: c.key(i, 3, 32), TtlUs: 1 << 40, Owner: owner, DeadlineUs: 1,
				}}},
				&wire.Command{Kind: &wire.Command_Attach{Attach: &wire.Attach{
					Session: c.id(i), Epoch: epoch, Owner: owner, Number: 1, Client: client, Fresh: true,
				}}},
				c.write(i, 1))
			if i < active {
				c.seqs[i] = 1
				continue
			}
			cmds = append(cmds,
				&wire.Command{Kind: &wire.Command_Ack{Ack: &wire.Ack{Session: c.id(i), Epoch: epoch, Owner: owner, Client: client, Ack: 2}}},
				&wire.Command{Kind: &wire.Command_Detach{Detach: &wire.Detach{Session: c.id(i), Epoch: epoch, Owner: owner, Number: 1}}})
		}
		c.apply(b, cmds...)
	}
	return c
}

func (c *crowd) write(i int, seq uint64) *wire.Command {
	w := &wire.Write{
		Session: c.id(i), Epoch: uint64(i) + 2, Owner: owner, Client: c.key(i, 1, wire.IDBytes), Seq: seq, Prev: seq - 1,
		Ack: seq, Changes: []*wire.Change{{Key: "key", Value: c.value}}, Reply: &wire.Reply{Seq: seq},
	}
	w.Digest = wire.Digest(w)
	return &wire.Command{Kind: &wire.Command_Write{Write: w}}
}

// writes applies an entry of writes to sessions drawn among the attached, and
// returns how long that took.
func (c *crowd) writes(b *testing.B, rng *rand.Rand) time.Duration {
	var cmds []*wire.Command
	for range scaleStep {
		i := rng.IntN(len(c.seqs))
		c.seqs[i]++
		cmds = append(cmds, c.write(i, c.seqs[i]))
	}
	return c.apply(b, cmds...)
}

func liveHeap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func percentile(took []time.Duration, p float64) float64 {
	slices.Sort(took)
	return float64(took[int(p*float64(len(took)-1))].Microseconds())
}

// BenchmarkScale is of a tenth of BATON_SCALE sessions (1,000,000) and of all of
// them, a tenth of those attached: one write's cost, the heap that a session takes,
// how long an entry of 64 writes takes to apply while a snapshot is written and
// while none is, and how long a snapshot takes to be read back.
//
//	BATON_SCALE=1000000 go test ./fsm -run '^$' -bench Scale -benchtime 300000x -timeout 30m
func BenchmarkScale(b *testing.B) {
	all := 1_000_000
	if s := os.Getenv("BATON_SCALE"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 10*scaleStep {
			b.Fatalf("BATON_SCALE=%s: want a number from %d on", s, 10*scaleStep)
		}
		all = n
	}
	for _, n := range []int{all / 10, all} {
		b.Run(fmt.Sprint("sessions=", n), func(b *testing.B) { benchScale(b, n) })
	}
}

func benchScale(b *testing.B, n int) {
	before := liveHeap()
	c := newCrowd(b, n, n/10)
	perSession := float64(liveHeap()-before) / float64(n)
	rng := rand.New(rand.NewPCG(1, 2))
	var quiet []time.Duration
	var spent time.Duration
	b.ResetTimer()
	for done := 0; done < b.N; done += scaleStep {
		took := c.writes(b, rng)
		spent += took
		quiet = append(quiet, took)
	}
	b.StopTimer()

	var file bytes.Buffer
	snap, err := c.f.Snapshot()
	if err != nil {
		b.Fatal(err)
	}
	written := make(chan error, 1)
	go func() { written <- WriteSnapshot(&file, snap.(*snapshot).snap) }()
	var busy []time.Duration
	for err = nil; ; {
		busy = append(busy, c.writes(b, rng))
		select {
		case err = <-written:
		default:
			continue
		}
		break
	}
	if err != nil {
		b.Fatal(err)
	}
	begun := time.Now()
	s, err := ReadSnapshot(bytes.NewReader(file.Bytes()))
	if err != nil || s.Counts().Sessions != n {
		b.Fatalf("%v: another state came back", err)
	}
	b.ReportMetric(time.Since(begun).Seconds(), "restore-s")
	b.ReportMetric(float64(file.Len())/float64(n), "file-B/session")
	b.ReportMetric(perSession, "heap-B/session")
	b.ReportMetric(float64(spent.Nanoseconds())/float64(len(quiet)*scaleStep), "ns/write")
	b.ReportMetric(percentile(quiet, 0.99), "entry-p99-us")
	b.ReportMetric(percentile(busy, 0.99), "entry-p99-in-snapshot-us")
	b.ReportMetric(percentile(busy, 1), "entry-max-in-snapshot-us")
	b.ReportMetric(0, "ns/op")
	runtime.KeepAlive(c)
}
