package sim

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/baton-cluster/baton"
)

// world is one cluster with its clients, in a synctest bubble.
type world struct {
	t        *testing.T
	seed     uint64
	grade    grade
	profile  string
	lease    time.Duration
	start    time.Time
	rng      *rand.Rand
	net      *network
	dir      string
	machines []*machine
	clients  []*client
	jobs     sync.WaitGroup

	mu      sync.Mutex
	notes   []string
	faults  map[string]int
	violate []string
	weather weather
}

// notesMax is how much of what happened is told when a run fails.
const notesMax = 400

func newWorld(t *testing.T, seed uint64, g grade) *world {
	w := &world{
		t: t, seed: seed, grade: g, start: time.Now(), rng: rand.New(rand.NewPCG(seed, 1)), net: newNetwork(seed),
		dir: t.TempDir(), faults: map[string]int{},
	}
	w.weather = weather{storm: true, change: make(chan struct{})}
	w.profile, w.lease = g.draw(rand.New(rand.NewPCG(seed, 6)))
	must(t, baton.PKIInit(w.pki()))
	for i := range machinesCount {
		m := &machine{w: w, name: fmt.Sprintf("n%d", i+1), ip: fmt.Sprintf("127.0.1.%d", i+1)}
		m.disk = newPlatter(seed+uint64(i)<<32, w.count, m.die)
		m.clock = clock{start: w.start, rate: 1 + driftMax*(2*w.rng.Float64()-1), wall: time.Duration(w.rng.Int64N(int64(48*time.Hour))) - 24*time.Hour, steps: &steps{}}
		must(t, baton.PKIIssue(w.pki(), m.name, []string{m.ip}))
		w.machines = append(w.machines, m)
	}
	return w
}

// Three of the machines vote, the fourth is a spare: votes move between them.
const (
	machinesCount = 4
	votersCount   = 3
	// replaceAfter is short, so that the autopilot gets something to do.
	replaceAfter = 15 * time.Second
)

// driftMax is how far a clock's rate is from true at most: any two are within
// what leases allow for, 1.2 to 1, and may come close to it.
const driftMax = 0.09

func (w *world) pki() string { return filepath.Join(w.dir, "pki") }

func (w *world) config(m *machine) baton.Config {
	var join []string
	for _, o := range w.machines {
		join = append(join, o.mgmt())
	}
	cfg := baton.Config{
		Name: m.name, Data: filepath.Join(w.dir, m.name), PKI: w.pki(), UserAddr: m.user(), MgmtAddr: m.mgmt(),
		Join: join, Expect: votersCount, TargetVoters: votersCount, ReplaceDeadAfter: replaceAfter, Mux: w.application(), Network: w.host(m.ip), Clock: m.clock, Disk: m.disk,
	}
	if os.Getenv("BATON_SIM_LOG") != "" {
		cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return w.drawn(cfg)
}

func (w *world) spawn(f func()) {
	w.jobs.Add(1)
	go func() {
		defer w.jobs.Done()
		f()
	}()
}

// note keeps what happened, for the story of a run that fails.
func (w *world) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.notes = append(w.notes, fmt.Sprintf("%10.3fs  ", time.Since(w.start).Seconds())+fmt.Sprintf(format, args...))
	if len(w.notes) > notesMax {
		w.notes = w.notes[1:]
	}
}

// violation notes that a promise was broken.
func (w *world) violation(format string, args ...any) {
	w.note("VIOLATION "+format, args...)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.violate = append(w.violate, fmt.Sprintf(format, args...))
}

// count adds to what befell the cluster.
func (w *world) count(kind string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faults[kind]++
}

func (w *world) violated() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.violate) > 0
}

func (w *world) story() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.notes, "\n")
}

// admin asks all nodes, from a host of its own.
func (w *world) admin() *baton.Admin {
	var addrs []string
	for _, m := range w.machines {
		addrs = append(addrs, m.mgmt())
	}
	a, err := baton.DialAdmin(context.Background(), baton.AdminConfig{
		Addrs: addrs, PKI: w.pki(), Network: w.host("127.0.1.200"), Clock: clock{start: w.start, rate: 1},
	})
	must(w.t, err)
	return a
}

// healthyWithin is how long a healed cluster may take to be whole again, in
// virtual time: it is liveness's bound, not a claim about speed.
const healthyWithin = 3 * time.Minute

// awaitHealthy waits until all nodes serve and the cluster says that it is well.
func (w *world) awaitHealthy(a *baton.Admin) error {
	limit := time.Now().Add(healthyWithin)
	var last error
	for time.Now().Before(limit) {
		w.restartFallen() // one whose disk hung may still be stopping
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		st, err := a.Status(ctx)
		cancel()
		last = err
		if err == nil && st.Healthy && len(st.Nodes) == len(w.machines) {
			well := true
			for _, n := range st.Nodes {
				well = well && n.Reachable && n.State == "active"
				if n.State == "draining" { // a drained node that was fenced comes back drained
					w.undrain(a, n.Name)
				}
			}
			if well {
				return nil
			}
		}
		if err == nil {
			last = fmt.Errorf("healthy: %v, leader %q, %+v", st.Healthy, st.Leader, st.Nodes)
		}
		time.Sleep(500 * time.Millisecond)
	}
	return fmt.Errorf("the healed cluster was not healthy within %v: %w", healthyWithin, last)
}

func (w *world) undrain(a *baton.Admin, node string) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := a.Undrain(ctx, node); err != nil {
		w.note("undrain %s: %v", node, err)
	}
}

// close ends everything that lives in the bubble.
func (w *world) close() {
	for _, c := range w.clients {
		c.close()
	}
	for _, m := range w.machines {
		m.disk.repair()
		m.end()
	}
	w.jobs.Wait()
	// memberlist's Shutdown does not wait for probes that are under way; time
	// stands still once the bubble's first goroutine has returned.
	time.Sleep(lingering)
}

// lingering is longer than anything waits that nobody waits for.
const lingering = time.Minute

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
