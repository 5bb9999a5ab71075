package explore

import (
	"testing"

	"github.com/baton-cluster/baton/test/explore/search"
)

// rules are those of the search's own part, each with a scope in which it is
// missed when it is taken out.
var rules = []scope{
	{without: "unfreezes unasked", nodes: 2, clients: 1, plan: "r", moves: 1},
	{without: "an older claim", nodes: 2, clients: 1, plan: "wr", moves: 1},
	{without: "orphans", nodes: 2, clients: 1, moves: 1, gone: 1},
}

// TestRules: the search sees what it is for.
func TestRules(t *testing.T) {
	for _, sc := range rules {
		if raced && sc.gone > 0 {
			continue
		}
		t.Run(sc.without, func(t *testing.T) {
			rep := search.Run[state](newWorld(sc), search.Limits{})
			if rep.Wrong == "" {
				t.Fatalf("not missed in %d states (complete: %v)", rep.States, rep.Complete)
			}
			t.Logf("missed after %d states:\n%s", rep.States, &story{sc, rep.Wrong, rep.Story})
		})
	}
}
