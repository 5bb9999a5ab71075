package nemesis

import (
	"context"
	"errors"
	"math/rand/v2"
	"reflect"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/baton-cluster/baton/test/jepsen-lite/control"
	"github.com/baton-cluster/baton/test/jepsen-lite/mesh"
)

func TestPlan(t *testing.T) {
	const length, warm = 10 * time.Minute, 3 * time.Second
	plan := Plan(7, length, warm, 3, Kinds)
	if !reflect.DeepEqual(plan, Plan(7, length, warm, 3, Kinds)) {
		t.Error("the same seed gives another plan")
	}
	if reflect.DeepEqual(plan, Plan(8, length, warm, 3, Kinds)) {
		t.Error("another seed gives the same plan")
	}
	had := map[Kind]bool{}
	for i, f := range plan {
		had[f.Kind] = true
		if i > 0 && f.At < plan[i-1].At || f.At < warm || f.At+f.For > length || f.For <= 0 {
			t.Errorf("out of place: %v", f)
		}
		// The fourth quarter of each cycle is calm from end to end.
		q := min(max(length/quarters, quarterMin), quarterMax)
		if (f.At-warm)/q%4 == 3 || (f.At+f.For-warm-1)/q%4 == 3 {
			t.Errorf("in a calm quarter: %v", f)
		}
	}
	for _, k := range Kinds {
		if !had[k] {
			t.Errorf("%s never comes", k)
		}
	}
	if len(Plan(7, time.Minute, warm, 3, nil)) != 0 {
		t.Error("faults of no kind")
	}
}

// world is a cluster that only remembers.
type world struct {
	mu     sync.Mutex
	up     [3]bool
	paused [3]bool
	drains [3]bool
	faults [3]control.Faults
	links  map[[2]string]mesh.Policy
	bad    []string
	cut    int // SetLink calls that blocked
	refuse int // Undrain calls to refuse
}

func newWorld() *world {
	return &world{up: [3]bool{true, true, true}, links: map[[2]string]mesh.Policy{}}
}

func (w *world) Nodes() int                                        { return 3 }
func (w *world) Clients() int                                      { return 2 }
func (w *world) Sessions() int                                     { return 4 }
func (w *world) Leader(context.Context) (int, error)               { return 1, nil }
func (w *world) Owner(context.Context, int) (int, error)           { return 0, errors.New("nobody knows") }
func (w *world) Shared(uint64) (string, error)                     { return "s", nil }
func (w *world) OwnerOf(context.Context, string, int) (int, error) { return rand.IntN(3), nil }
func (w *world) MoveLeader(context.Context) error                  { return nil }
func (w *world) MoveVote(context.Context, uint64) (string, error)  { return "n1 to n2", nil }
func (w *world) Migrate(context.Context, int, int) error           { return nil }
func (w *world) Fence(context.Context, int) error                  { return nil }
func (w *world) Displace()                                         {}
func (w *world) Sever(a, b string)                                 {}
func (w *world) LinkDown(int, bool) error                          { return nil }
func (w *world) Rebalance(context.Context) error                   { return nil }
func (w *world) Settle(context.Context, int) error                 { return nil }
func (w *world) Whole(context.Context) error                       { return nil }
func (w *world) Damage(int, Kind, uint64) (string, bool, error) {
	return "a bit", true, nil
}
func (w *world) Refuses(_ context.Context, n int, _ bool) (bool, error) { return true, w.Start(n) }
func (w *world) Wipe(n int) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.up[n] {
		w.bad = append(w.bad, "wiped while it runs")
	}
	return nil
}
func (w *world) SetFaults(_ context.Context, n int, f control.Faults) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faults[n] = f
	return f.Check()
}
func (w *world) Stop(_ context.Context, n int) error { return w.Kill(n) }
func (w *world) flip(a *[3]bool, n int, to bool, say string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if a[n] == to {
		w.bad = append(w.bad, say)
	}
	a[n] = to
}
func (w *world) Kill(n int) error {
	w.flip(&w.up, n, false, "killed twice")
	w.mu.Lock()
	defer w.mu.Unlock()
	w.paused[n] = false
	return nil
}
func (w *world) Start(n int) error  { w.flip(&w.up, n, true, "started twice"); return nil }
func (w *world) Pause(n int) error  { w.flip(&w.paused, n, true, "paused twice"); return nil }
func (w *world) Resume(n int) error { w.flip(&w.paused, n, false, "resumed twice"); return nil }
func (w *world) Drain(_ context.Context, n int) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.drains[n] = true
	return nil
}
func (w *world) Undrain(_ context.Context, n int) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.refuse > 0 {
		w.refuse--
		return errors.New("no leader")
	}
	w.drains[n] = false
	return nil
}
func (w *world) SetLink(from, to string, p mesh.Policy) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.links[[2]string{from, to}] = p
	if p.Blocked {
		w.cut++
	}
}

// whole fails unless everything is as it was.
func (w *world) whole(t *testing.T) {
	t.Helper()
	if w.up != [3]bool{true, true, true} || w.paused != [3]bool{} || w.drains != [3]bool{} || w.faults != [3]control.Faults{} {
		t.Errorf("left behind: up %v, paused %v, draining %v, faults %v", w.up, w.paused, w.drains, w.faults)
	}
	for l, p := range w.links {
		if p != (mesh.Policy{}) {
			t.Errorf("left behind: %v %+v", l, p)
		}
	}
	for _, b := range w.bad {
		t.Error(b)
	}
}

func runner(w *world) *Runner {
	start := time.Now()
	return &Runner{World: w, Now: func() int64 { return int64(time.Since(start)) }, Log: func(Event) {}}
}

// TestRunUndoesAll: whatever the seed draws, and wherever it is stopped, all is
// undone.
func TestRunUndoesAll(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			w.refuse = int(seed % 5)
			ctx, cancel := context.WithCancel(t.Context())
			if seed%2 == 1 {
				time.AfterFunc(time.Duration(20+seed)*time.Second, cancel)
			}
			defer cancel()
			runner(w).Run(ctx, Plan(seed, 2*time.Minute, time.Second, 3, Kinds))
			w.whole(t)
			if w.cut == 0 && seed%2 == 0 {
				t.Error("nothing was ever blocked")
			}
		})
	}
}

// TestOverlap: what one fault undoes, another still holds.
func TestOverlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		done := make(chan struct{})
		go func() {
			runner(w).Run(t.Context(), []Fault{
				{At: time.Second, For: 2 * time.Second, Kind: Isolate, Target: "n1"},
				{At: 2 * time.Second, For: 4 * time.Second, Kind: OneWayOut, Target: "n1"},
			})
			close(done)
		}()
		time.Sleep(4 * time.Second)
		synctest.Wait()
		w.mu.Lock()
		out, in := w.links[[2]string{"n1", "n2"}], w.links[[2]string{"n2", "n1"}]
		w.mu.Unlock()
		if !out.Blocked || in.Blocked {
			t.Errorf("out %+v, in %+v; want only out blocked still", out, in)
		}
		<-done
		w.whole(t)
	})
}

func TestShapes(t *testing.T) {
	w := newWorld()
	r := runner(w)
	r.active = map[int][]hop{}
	blockedOf := func(k Kind) int {
		n := 0
		for _, h := range r.hops(context.Background(), Fault{Kind: k}, 0, newRand()) {
			if h.policy.Blocked {
				n++
			}
		}
		return n
	}
	for k, want := range map[Kind]int{
		Isolate: 4, CutOff: 8, OneWayIn: 2, OneWayOut: 2, Ring: 3, Bridge: 2, ClientCut: 4, Slow: 0, Lossy: 0,
	} {
		if got := blockedOf(k); got != want {
			t.Errorf("%s blocks %d directions, want %d", k, got, want)
		}
	}
	if blockedOf(Halves) < 4 {
		t.Error("halves are not apart")
	}
}

func newRand() *rand.Rand { return rand.New(rand.NewPCG(3, 4)) }
