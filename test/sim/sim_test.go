package sim

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/baton-cluster/baton"
)

// Environment of a run; see the Makefile's sim.
const (
	envSeeds = "BATON_SIM_SEEDS" // "1,2,7-12"
	envHours = "BATON_SIM_HOURS" // virtual, for each seed
)

const (
	seedDefault   = "1"
	hoursDefault  = 0.05
	clientsCount  = 3
	sessionsCount = 6
	// forming is time enough for the first nodes to form a cluster.
	forming = 10 * time.Second
)

// TestSim runs a cluster for each seed.
func TestSim(t *testing.T) {
	hours := hoursDefault
	if v := os.Getenv(envHours); v != "" {
		var err error
		hours, err = strconv.ParseFloat(v, 64)
		must(t, err)
	}
	for _, seed := range seeds(t) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			t.Logf("replay with: make sim SEEDS=%d HOURS=%v", seed, hours)
			synctest.Test(t, func(t *testing.T) { simulate(t, seed, time.Duration(hours*float64(time.Hour))) })
			t.Logf("took %.1f s of real time", time.Since(began).Seconds())
		})
	}
}

func seeds(t *testing.T) (all []uint64) {
	list := os.Getenv(envSeeds)
	if list == "" {
		list = seedDefault
	}
	for part := range strings.SplitSeq(list, ",") {
		lo, hi, ranged := strings.Cut(part, "-")
		from, err := strconv.ParseUint(lo, 10, 64)
		must(t, err)
		to := from
		if ranged {
			to, err = strconv.ParseUint(hi, 10, 64)
			must(t, err)
		}
		for s := from; s <= to; s++ {
			all = append(all, s)
		}
	}
	return all
}

// simulate forms a cluster, loads and torments it, heals it, and compares what
// is there with what clients were told.
func simulate(t *testing.T, seed uint64, d time.Duration) {
	w := newWorld(t, seed)
	defer w.close()
	for i, m := range w.machines {
		if i == votersCount {
			time.Sleep(forming) // a cluster is formed by as many as are expected
		}
		m.boot()
	}
	a := w.admin()
	defer func() { _ = a.Close() }()
	if err := w.awaitHealthy(a); err != nil {
		t.Fatal(err)
	}
	ledgers, secrets := w.load()
	ids := slices.Sorted(maps.Keys(ledgers))

	ctx, stop := context.WithCancel(context.Background())
	var movers sync.WaitGroup
	w.move(ctx, ids, rand.New(rand.NewPCG(seed, 4)), &movers)
	n := &nemesis{w: w, rng: rand.New(rand.NewPCG(seed, 5))}
	n.run(d)
	stop()
	movers.Wait()
	w.settle(n, a, ledgers, secrets)

	w.report(t, ledgers)
	for _, v := range w.violate {
		t.Error(v)
	}
	if t.Failed() {
		t.Log("what happened:\n" + w.story())
	}
}

// load opens the sessions and sets their clients going: of each session one
// writes and all read.
func (w *world) load() (ledgers map[string]*ledger, secrets map[string][]byte) {
	ledgers, secrets = map[string]*ledger{}, map[string][]byte{}
	for i := range clientsCount {
		w.newClient(i).sleep(fmt.Sprint("sleeper", i))
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for i := range sessionsCount {
		id := fmt.Sprint("s", i)
		l := &ledger{w: w, id: id, errs: map[string]int{}}
		writer := w.clients[i%len(w.clients)]
		s, err := writer.c.Open(ctx, baton.OpenOptions{ID: id, Shared: true, TTL: time.Hour})
		must(w.t, err)
		ledgers[id], secrets[id] = l, s.Secret()
		writer.write(s, l)
		writer.stream(s, l)
		for _, c := range w.clients {
			r, err := c.c.Resume(ctx, id, s.Secret())
			must(w.t, err)
			c.read(r, l)
		}
	}
	return ledgers, secrets
}

// settle heals everything and looks at what is left.
func (w *world) settle(n *nemesis, a *baton.Admin, ledgers map[string]*ledger, secrets map[string][]byte) {
	w.net.heal()
	for _, m := range w.machines {
		m.disk.repair()
	}
	for _, m := range w.machines {
		m.boot()
	}
	if err := w.awaitHealthy(a); err != nil {
		w.violation("%v", err)
		return
	}
	time.Sleep(30 * time.Second) // clients go on in the healed cluster
	for _, c := range w.clients {
		c.close()
	}
	last := w.newClient(len(w.clients))
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	for id, l := range ledgers {
		s, err := last.c.Resume(ctx, id, secrets[id])
		if err != nil {
			w.violation("%s: the final reader cannot attach: %v", id, err)
			continue
		}
		v, err := s.Get(ctx, counterKey)
		if err != nil {
			w.violation("%s: the final read failed: %v", id, err)
			continue
		}
		got, _ := strconv.ParseInt(string(v.Value), 10, 64)
		if got < max(l.acked, l.seen) || got > l.acked+l.unknown {
			w.violation("%s: %d in the end; %d were acknowledged and %d unknown after", id, got, l.acked, l.unknown)
		}
		w.checkHistory(ctx, a, id)
	}
	if v, err := a.Verify(ctx); err != nil || !v.OK || len(v.Unreachable) > 0 {
		w.violation("verify: %+v, %v", v, err)
	}
}

func (w *world) checkHistory(ctx context.Context, a *baton.Admin, id string) {
	e, err := a.Explain(ctx, id)
	if err != nil {
		w.violation("%s: explain: %v", id, err)
		return
	}
	for i := 1; i < len(e.Changes); i++ {
		if e.Changes[i].Epoch <= e.Changes[i-1].Epoch {
			w.violation("%s: epochs do not rise: %+v", id, e.Changes)
		}
	}
}

func (w *world) report(t *testing.T, ledgers map[string]*ledger) {
	calls, reads := 0, 0
	errs := map[string]int{}
	for _, l := range ledgers {
		calls += l.calls
		reads += l.reads
		for k, n := range l.errs {
			errs[k] += n
		}
	}
	t.Logf("%.2f virtual hours, %d bumps, %d reads, failed %v, faults %v, %d packets",
		time.Since(w.start).Hours(), calls, reads, errs, w.faults, w.net.sent)
}
