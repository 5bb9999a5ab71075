package explore

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/baton-cluster/baton/test/explore/search"
	"github.com/baton-cluster/baton/wire"
)

// Environment of a search; see the Makefile's explore and explore-deep.
const (
	// envRun is "1" for all scopes, "deep" for those without end, or a list of
	// names. Without it only the smallest are searched.
	envRun = "BATON_EXPLORE"
	// envLimit ends the search of each scope after that many states. Each takes
	// some thirty bytes, and each of the present layer some three hundred.
	envLimit = "BATON_EXPLORE_LIMIT"
)

// scopes are what is searched, each to its end: every order of every step that its
// bounds allow.
var scopes = []scope{
	{name: "a failover", nodes: 2, clients: 1, plan: "w", fences: 1},
	{name: "two at once", nodes: 2, clients: 2, shared: true, plan: "wr"},
	{name: "one displaces the other", nodes: 2, clients: 2, plan: "w", cuts: 1},
	{name: "a crash, and what comes late", nodes: 2, clients: 1, plan: "wr", crashes: 1, copies: 1},
	{name: "expiry", nodes: 2, clients: 1, plan: "w", ticks: 1, cuts: 1, copies: 1},
	{name: "a move", nodes: 2, clients: 1, plan: "r", moves: 1},
	{name: "a move of a detached session", nodes: 2, clients: 1, moves: 1, gone: 1},
	{name: "a move under writes", nodes: 2, clients: 1, plan: "w", moves: 1},
}

// wide are searched only when asked for.
var wide = []scope{
	{name: "a move under writes and reads", nodes: 2, clients: 1, plan: "wr", moves: 1},
	{name: "a move of a shared session", nodes: 2, clients: 2, shared: true, planB: "r", moves: 1},
	{name: "a move, and a client that goes", nodes: 2, clients: 1, plan: "r", moves: 1, gone: 1},
	{name: "a move, and streams that break", nodes: 2, clients: 1, plan: "r", moves: 1, cuts: 1},
	{name: "a move, and a crash", nodes: 2, clients: 1, moves: 1, crashes: 1},
	{name: "a move, and a fence", nodes: 2, clients: 1, moves: 1, fences: 1},
	{name: "a move, and a close", nodes: 2, clients: 1, plan: "w", moves: 1, closes: 1},
	{name: "a move past its deadline", nodes: 2, clients: 1, plan: "w", moves: 1, ticks: 1},
	{name: "directors that die, and old ones", nodes: 2, clients: 1, moves: 1, directors: 1, deaths: 1},
	{name: "calls that fail", nodes: 2, clients: 1, plan: "w", moves: 1, fails: 1},
	{name: "what arrives twice", nodes: 2, clients: 1, plan: "w", moves: 1, copies: 1},
	{name: "answers that are lost", nodes: 2, clients: 1, plan: "w", moves: 1, losses: 1},
	{name: "there and back", nodes: 2, clients: 1, moves: 2},
	{name: "three nodes and a fence", nodes: 3, clients: 1, plan: "w", fences: 1},
	{name: "readers, a writer and a fence", nodes: 2, clients: 2, shared: true, plan: "w", planB: "r", fences: 1},
}

// deep are searched as far as the limit goes.
var deep = []scope{
	{name: "all at once", nodes: 3, clients: 2, shared: true, plan: "wr", moves: 2, cuts: 1, losses: 1, copies: 1, crashes: 1, fences: 1, directors: 1, deaths: 1, ticks: 1, closes: 1, fails: 1, gone: 1},
	{name: "two moves and a crash", nodes: 3, clients: 1, plan: "wr", moves: 2, crashes: 1, fences: 1},
}

func chosen() []scope {
	run := os.Getenv(envRun)
	switch run {
	case "":
		if raced {
			return scopes[:5]
		}
		return scopes
	case "1":
		return append(append([]scope{}, scopes...), wide...)
	case "deep":
		return deep
	}
	var list []scope
	for _, all := range [][]scope{scopes, wide, deep} {
		for _, sc := range all {
			if strings.Contains(","+run+",", ","+sc.name+",") {
				list = append(list, sc)
			}
		}
	}
	return list
}

func TestExplore(t *testing.T) {
	limit, _ := strconv.Atoi(os.Getenv(envLimit))
	var total int
	var missed float64
	var table strings.Builder
	var all reached
	for _, sc := range chosen() {
		t.Run(sc.name, func(t *testing.T) {
			began := time.Now()
			w := newWorld(sc)
			rep := search.Run[state](w, search.Limits{States: limit})
			total += rep.States
			missed += rep.Missed
			end := "complete"
			if !rep.Complete {
				end = "as far as it went"
			}
			here := all.add(w.b)
			fmt.Fprintf(&table, "%-33s %9d states %10d steps %3d deep, %s, %4.0f s, bounds %s; of the tables %d states, a move completed in %d, aborted in %d, the session gone in %d\n",
				sc.name, rep.States, rep.Edges, rep.Depth, end, time.Since(began).Seconds(), sc.bounds(), here.tables, here.moved, here.aborted, here.gone)
			if rep.Wrong != "" {
				t.Fatalf("keep this as a file of testdata:\n%s", &story{sc, rep.Wrong, rep.Story})
			}
			if !rep.Complete && os.Getenv(envRun) != "deep" {
				t.Errorf("not searched to its end in %d states", rep.States)
			}
		})
	}
	if run := os.Getenv(envRun); (run == "" && !raced || run == "1") && (all.moved == 0 || all.aborted == 0 || all.gone == 0) {
		t.Errorf("no move was completed, or none aborted, or no session ended: %+v", all)
	}
	t.Logf("\n%s%d states together; the chance that two of them were taken for one is below %.1g", &table, total, missed)
}

// reached counts the states of the tables in which something has come about: to
// see that a search does not pass by what it is for.
type reached struct{ tables, moved, aborted, gone int }

func (r *reached) add(b *book) (here reached) {
	here.tables = len(b.list)
	for i := range b.list {
		f := &b.list[i].facts
		if f.row == 0 {
			here.gone++
		}
		for _, m := range f.moves {
			switch wire.Phase(m.phase) {
			case wire.Phase_PHASE_COMPLETED:
				here.moved++
			case wire.Phase_PHASE_ABORTED:
				here.aborted++
			}
		}
	}
	r.moved, r.aborted, r.gone = r.moved+here.moved, r.aborted+here.aborted, r.gone+here.gone
	return here
}
