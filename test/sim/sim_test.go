package sim

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/baton-cluster/baton"
)

const (
	clientsCount  = 3
	sessionsCount = 6
	// forming is time enough for the first nodes to form a cluster.
	forming = 10 * time.Second
)

// simulate forms a cluster, loads and torments it, heals it, and compares what
// is there with what clients were told.
func simulate(t *testing.T, g grade, seed uint64, d time.Duration) result {
	w := newWorld(t, seed, g)
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
	n := newNemesis(w, rand.New(rand.NewPCG(seed, 5)))
	for _, m := range w.machines {
		m.disk.setLucky(false)
	}
	n.run(d)
	stop()
	movers.Wait()
	w.settle(n, a, ledgers, secrets)

	for _, v := range w.violate {
		t.Error(v)
	}
	if t.Failed() {
		t.Log("what happened:\n" + w.story())
	}
	return w.result(ledgers)
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
		m.disk.heal()
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
