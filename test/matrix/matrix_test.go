package matrix

import (
	"fmt"
	"hash/fnv"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/baton-cluster/baton/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// cell is one place of the matrix.
type cell struct {
	who, what, step string
	detached        bool // nobody is attached while the session moves
}

func (c cell) name() string {
	n := c.who + "/" + c.what + "/" + c.step
	if c.detached {
		n += "/detached"
	}
	return n
}

func (c cell) seed() uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(c.name()))
	return h.Sum64()
}

// The places of a cell's move. n1 leads at first.
func (c cell) places() (source, target string) {
	switch c.who {
	case "leader=source":
		return "n1", "n2"
	case "leader=target":
		return "n2", "n1"
	}
	return "n2", "n3"
}

// struckNodes are the nodes that a fault of this cell befalls.
func (c cell) struckNodes() []string {
	source, target := c.places()
	switch c.who {
	case "source", "leader=source":
		return []string{source}
	case "target", "leader=target":
		return []string{target}
	case "leader":
		return []string{"n1"}
	case "majority=leader+target":
		return []string{"n1", target}
	case "majority=source+target":
		return []string{source, target}
	}
	return nil
}

var (
	nodeWho = []string{
		"source", "target", "leader", "leader=source", "leader=target",
		"majority=leader+target", "majority=source+target",
	}
	nodeWhat = []string{
		"crash", "pause", "cut", "cut-inbound", "cut-outbound",
		"disk-full", "fsync-error", "disk-stall", "duplicated", "reordered",
	}
	// others are those who fail in ways of their own.
	others = []struct {
		who   string
		whats []string
	}{
		{"client", nodeWhat},
		{"second-director", []string{"unaware", "competing"}},
		{"session", []string{"closed", "expired"}},
		{"drain", []string{"cancelled"}},
	}
)

// cells is the whole matrix, in the order of its table.
func cells() (all []cell) {
	add := func(who, what string) {
		for _, detached := range []bool{false, true} {
			for _, step := range stepNames {
				all = append(all, cell{who, what, step, detached})
			}
		}
	}
	for _, who := range nodeWho {
		for _, what := range nodeWhat {
			add(who, what)
		}
	}
	for _, o := range others {
		for _, what := range o.whats {
			add(o.who, what)
		}
	}
	return all
}

// cannotOccur is why there is nothing to test in a cell, "" if there is.
func (c cell) cannotOccur() string {
	switch {
	case c.detached && c.step == "4-warm":
		return "a detached session has no client to be warm"
	case c.who == "client" && c.detached:
		return "no client is there"
	case c.who == "client" && (c.what == "duplicated" || c.what == "reordered"):
		return "a client's frames travel on a stream, which keeps their order; what is sent again is in the other cells"
	case c.who == "client" && (strings.HasPrefix(c.what, "disk") || c.what == "fsync-error"):
		return "a client has no disk"
	case c.what == "closed" && c.detached:
		return "only an attached client closes a session"
	case c.who == "drain" && c.step == "1":
		return "before its first move a drain has nothing to cancel"
	}
	return ""
}

// verdicts is what became of the cells, for the table.
type verdicts struct {
	mu sync.Mutex
	of map[cell]string
}

func (v *verdicts) set(c cell, what string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.of[c] = what
}

// TestMatrix is the failure matrix: each fault at each step of a move, to each part. One cell is run by name:
//
//	go test ./test/matrix -run 'TestMatrix/source/crash/7-committed$'
func TestMatrix(t *testing.T) {
	all := cells()
	v := &verdicts{of: map[cell]string{}}
	t.Cleanup(func() { // when all cells are through
		if testing.Verbose() {
			v.print(all)
		}
	})
	for _, c := range all {
		if why := c.cannotOccur(); why != "" {
			v.set(c, "cannot occur: "+why)
			continue
		}
		t.Run(c.name(), func(t *testing.T) {
			t.Parallel()
			v.set(c, "FAILED")
			synctest.Test(t, func(t *testing.T) { run(t, c) })
			if !t.Failed() {
				v.set(c, "ok")
			}
		})
	}
}

// print prints a line for each who × what, with a mark for each step.
func (v *verdicts) print(all []cell) {
	var b strings.Builder
	fmt.Fprintf(&b, "\nThe failure matrix. Steps: %s.\n", strings.Join(stepNames, ", "))
	fmt.Fprintf(&b, "ok: as promised. -: cannot occur, for the reason below. .: not run.\n\n")
	fmt.Fprintf(&b, "%-24s %-13s %-9s", "who", "what", "session")
	for _, s := range stepNames {
		fmt.Fprintf(&b, " %-4s", strings.Replace(s, "-", "", 1)[:min(3, len(s))])
	}
	var reasons []string
	ran, failed, cannot := 0, 0, 0
	for i, c := range all {
		if i%len(stepNames) == 0 {
			kind := "attached"
			if c.detached {
				kind = "detached"
			}
			fmt.Fprintf(&b, "\n%-24s %-13s %-9s", c.who, c.what, kind)
		}
		mark := "."
		switch v := v.of[c]; {
		case v == "ok":
			mark, ran = "ok", ran+1
		case v == "FAILED":
			mark, failed = "FAIL", failed+1
		case v != "":
			mark, cannot = "-", cannot+1
			reason := fmt.Sprintf("%s/%s: %s", c.who, c.what, v)
			if c.detached && c.step == "4-warm" {
				reason = "*/*/4-warm/detached: " + v
			}
			if !slices.Contains(reasons, reason) {
				reasons = append(reasons, reason)
			}
		}
		fmt.Fprintf(&b, " %-4s", mark)
	}
	fmt.Fprintf(&b, "\n\n%s\n\n%d cells: %d ok, %d failed, %d cannot occur, %d not run\n",
		strings.Join(reasons, "\n"), len(all), ran, failed, cannot, len(all)-ran-failed-cannot)
	fmt.Fprint(os.Stdout, b.String())
}

const (
	moveTime = 15 * time.Second // the directors' default deadline
	tickTime = 10 * time.Second // between two commits of log time, at most
	// election is how long there may be no leader after one is lost.
	election = 2*electionMin + 100*time.Millisecond
)

// run is one cell: a move, a fault at a step of it, the fault's end, and then
// everything must be as promised.
func run(t *testing.T, c cell) {
	w := newWorld(t, c.seed())
	defer w.close()
	s := &scene{t: t, w: w, c: c}
	s.source, s.target = c.places()
	w.boot()
	if !s.openSession() {
		return
	}
	w.steps.arm(c.step, s.strike)
	moved := s.move()
	select {
	case <-w.steps.struck:
	case <-time.After(moveTime):
		t.Errorf("the move never came to step %s", c.step)
		return
	}
	time.Sleep(s.healAfter())
	s.heal()
	s.settle()
	<-moved
	if s.sessionEnds() && s.gone() {
		s.verdictGone()
	} else {
		s.servesAgain()
		s.movesAgain()
		s.verdict()
	}
	s.verdictAll()
}

// openSession opens the session at the source and calls it a few times.
func (s *scene) openSession() bool {
	secret := fresh(32)
	s.secret = secret
	s.client = newClient(s.w, secret, s.source)
	s.client.open = &wire.OpenReq{Session: sessionID, Secret: secret, Nonce: fresh(16), Instance: s.client.instance, TtlUs: s.ttlUS()}
	s.clients = append(s.clients, s.client)
	s.client.start()
	s.client.call()
	ok := s.w.must("the session is opened and served", 5*time.Second, func() bool {
		acked, _ := s.client.counts()
		return acked >= 3
	})
	if ok && s.c.detached {
		s.leave(s.client)
	} else if ok {
		s.client.call() // without a break, while the session moves
	}
	return ok
}

// ttlUS is a time to live that passes within the cell where it is to.
func (s *scene) ttlUS() uint64 {
	if s.c.what == "expired" {
		return uint64(wire.TTLMin / time.Microsecond)
	}
	return uint64(time.Hour / time.Microsecond)
}
