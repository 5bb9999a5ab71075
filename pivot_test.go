package baton_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/baton-cluster/baton"
	"github.com/baton-cluster/baton/wire"
)

// liveNode is an application that holds a list in memory for each session.
type liveNode struct {
	mu   sync.Mutex
	live map[string][]byte
	lost int // sessions that came without their live state
}

func (l *liveNode) mux() *baton.Mux {
	m := baton.KV()
	m.Handle("append", func(tx *baton.Tx, p []byte) ([]byte, error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		id := tx.Fence().Session
		l.live[id] = append(l.live[id], p...)
		return []byte(string(l.live[id])), nil
	})
	m.OnFreeze(func(session string, _ baton.Fence) ([]byte, error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		live := l.live[session]
		delete(l.live, session)
		return live, nil
	})
	m.OnResume(func(session string, _ uint64, live []byte, ok bool) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.live[session] = append([]byte(nil), live...)
		if !ok {
			l.lost++
		}
	})
	return m
}

// TestLiveStateMovesWithItsSession between real nodes, and is reported lost when
// the owner stops without handing over.
func TestLiveStateMovesWithItsSession(t *testing.T) {
	var apps []*liveNode
	var mu sync.Mutex
	c := startCluster(t, func() *baton.Mux {
		l := &liveNode{live: map[string][]byte{}}
		mu.Lock()
		defer mu.Unlock()
		apps = append(apps, l)
		return l.mux()
	})
	ctx := testContext(t)
	s, err := c.client().Open(ctx, baton.OpenOptions{ID: "live"})
	must(t, err)
	var want string
	gaps := make(chan bool, 16)
	s.OnMove(func(m baton.Move) { gaps <- m.Gap })
	for i := range 4 {
		want += strconv.Itoa(i)
		r, err := s.Call(ctx, "append", []byte(strconv.Itoa(i)))
		must(t, err)
		if string(r.Payload) != want {
			t.Fatalf("live state %q after %d moves, want %q", r.Payload, i, want)
		}
		must(t, c.migrate(ctx, "live", c.name(c.other(c.ownerIndex(s)))))
		if <-gaps {
			t.Fatal("a planned move told of a gap")
		}
	}
	must(t, c.nodes[c.ownerIndex(s)].Close())
	r, err := s.Call(ctx, "append", []byte("x"))
	must(t, err)
	if string(r.Payload) != "x" {
		t.Fatalf("live state %q outlived its node", r.Payload)
	}
	for gap := range gaps {
		if gap {
			break
		}
	}
	lost := 0
	for _, l := range apps {
		l.mu.Lock()
		lost += l.lost
		l.mu.Unlock()
	}
	if lost != 1 {
		t.Fatalf("the application was told %d times that live state was lost, want once", lost)
	}
}

// migrate moves a session, and asks again where the leader changes in mid-move: a
// machine that is busy enough elects another, which settles the move either way.
func (c *testCluster) migrate(ctx context.Context, session, to string) error {
	return c.arrive(ctx, session, to, false)
}

// arrive is migrate; again: the session may be there, or on its way, already.
func (c *testCluster) arrive(ctx context.Context, session, to string, again bool) error {
	for ; ; again = true {
		info, err := c.nodes[0].Migrate(ctx, session, to)
		switch code := baton.CodeOf(err); {
		case ctx.Err() == nil && (code == wire.Code_UNAVAILABLE || again && unsettled(code)):
			time.Sleep(5 * time.Millisecond)
			continue
		case again && code == wire.Code_SAME_NODE:
			return nil
		case err == nil && (info.State != "Completed" || info.To != to):
			return fmt.Errorf("moving %s to %s: %+v", session, to, info)
		}
		return err
	}
}

// unsettled: a move that lost its leader is under way, the source has yet to learn that
// it is off, or a new leader has called it off.
func unsettled(code wire.Code) bool {
	return code == wire.Code_MIGRATION_ACTIVE || code == wire.Code_FROZEN || code == wire.Code_MIGRATION_ENDED
}

// pivots is how often TestPivotsBackAndForth moves its session; BATON_PIVOTS
// says otherwise.
func pivots(t *testing.T) int {
	if v := os.Getenv("BATON_PIVOTS"); v != "" {
		n, err := strconv.Atoi(v)
		must(t, err)
		return n
	}
	if testing.Short() {
		return 20
	}
	return 200
}

// TestPivotsBackAndForth moves one session between two nodes while it is called
// without a break: epochs strictly rise, every call is applied once, and neither
// goroutines nor memory are left behind in nodes or client.
func TestPivotsBackAndForth(t *testing.T) {
	c := startCluster(t, nil)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	s, err := c.client().Open(ctx, baton.OpenOptions{ID: "ball"})
	must(t, err)
	watch := &epochWatch{}
	s.OnMove(watch.moved)
	names := []string{"n2", "n3"}
	if s.Owner().Name == names[0] {
		names[0], names[1] = names[1], names[0]
	}
	turn := func(i int) { must(t, c.migrate(ctx, "ball", names[i%2])) }
	for i := range 10 { // connections to all nodes stand, pools are filled
		turn(i)
	}
	for range 600 { // and the caches of raft's log, which hold 512 entries
		_, _, err := s.Incr(ctx, "n", 0)
		must(t, err)
	}
	before := goroutines()

	stop, lanes := make(chan struct{}), make(chan error, 2)
	var total [2]int
	for lane := range total {
		go func() { lanes <- callUntil(ctx, s, stop, &total[lane]) }()
	}
	n := pivots(t)
	for i := range n / 2 { // what fills once is full
		turn(i)
	}
	heap := liveHeap()
	for i := n / 2; i < n; i++ {
		turn(i)
	}
	close(stop)
	for range total {
		must(t, <-lanes)
	}
	v, err := s.Get(ctx, "n")
	must(t, err)
	if want := total[0] + total[1]; string(v.Value) != strconv.Itoa(want) {
		t.Fatalf("the counter is at %s after %d acknowledged increments", v.Value, want)
	}
	watch.check(t, n)
	t.Logf("%d pivots under %d calls", n, total[0]+total[1])
	settled(t, before)
	// Three nodes remember each ended migration (wire.EndedMigrationsMax of them),
	// some 400 bytes each; a server that forgets no stream keeps three times as much.
	// Rings and buffers go on filling for a while.
	const perPivot, filling = 2 << 10, 2 << 20
	grown, most := int64(liveHeap())-int64(heap), int64(n-n/2)*perPivot+filling
	t.Logf("%d pivots left %d bytes of live heap behind, at most %d", n-n/2, grown, most)
	if grown > most {
		t.Errorf("%d pivots left %d bytes behind, more than %d", n-n/2, grown, most)
	}
	verdict := c.verify(ctx)
	if !verdict.OK {
		t.Fatalf("verify: %+v", verdict)
	}
}

// callUntil increments without a break and counts what was acknowledged. Each
// answer must be higher than the one before.
func callUntil(ctx context.Context, s *baton.Session, stop chan struct{}, acked *int) error {
	var last int64
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		sum, _, err := s.Incr(ctx, "n", 1)
		if err != nil {
			return err
		}
		if sum <= last {
			return fmt.Errorf("the counter said %d after %d", sum, last)
		}
		last = sum
		*acked++
	}
}

// epochWatch checks that each move that a client sees is to a higher epoch.
type epochWatch struct {
	mu     sync.Mutex
	epoch  uint64
	moves  int
	faults []string
}

func (w *epochWatch) moved(m baton.Move) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.moves++
	if m.Epoch <= w.epoch || m.From.ID == m.To.ID {
		w.faults = append(w.faults, fmt.Sprintf("from %s to %s at epoch %d after %d", m.From.Name, m.To.Name, m.Epoch, w.epoch))
	}
	w.epoch = m.Epoch
}

func (w *epochWatch) check(t *testing.T, atLeast int) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.faults) > 0 || w.moves < atLeast {
		t.Fatalf("%d moves seen of %d; %v", w.moves, atLeast, w.faults)
	}
}

// liveHeap is the memory in use after two collections: the first runs what has to
// be cleaned up, the second frees it.
func liveHeap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// goroutines is how many there are, but for those that are kept for what comes next, as
// how many they are by when is a matter of chance: those of pools, and those that serve
// raft's connections, of which each election may leave some behind for ever.
func goroutines() int {
	var b bytes.Buffer
	_ = pprof.Lookup("goroutine").WriteTo(&b, 1)
	kept, same, top := 0, 0, false
	for line := range strings.Lines(b.String()) {
		if n, _, ok := strings.Cut(line, " @ "); ok { // so many have the stack that follows
			same, _ = strconv.Atoi(n)
			top = true
		} else if strings.HasPrefix(line, "#\t") {
			if top && strings.Contains(line, "baton/pool.(*Pool).work+") || // what works is not on top
				strings.Contains(line, "raft.(*NetworkTransport).handleConn+") ||
				strings.Contains(line, "cluster.(*streamLayer).handle+") {
				kept += same
				same = 0
			}
			top = false
		}
	}
	return runtime.NumGoroutine() - kept
}

// settled waits until the process has no more goroutines than before, give or take
// those of a session that goes through a relay now: a dial was given up.
func settled(t *testing.T, before int) {
	t.Helper()
	const slack = 8
	var now int
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if now = goroutines(); now <= before+slack {
			return
		}
	}
	buf := make([]byte, 1<<20)
	t.Fatalf("%d goroutines, %d before\n%s", now, before, buf[:runtime.Stack(buf, true)])
}
