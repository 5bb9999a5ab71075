package migrate

import (
	"encoding/json"
	"go/parser"
	"go/token"
	"strings"
	"testing"

	"github.com/baton-cluster/baton/wire"
)

// TestNextMatchesDoc parses State's doc comment and compares it with the table.
func TestNextMatchesDoc(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "state.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	documented := map[[2]string]string{}
	for _, group := range f.Comments {
		text := group.Text()
		if !strings.HasPrefix(text, "State is where") {
			continue
		}
		for line := range strings.SplitSeq(text, "\n") {
			cells := strings.Fields(line)
			if !strings.HasPrefix(line, "\t") || len(cells) != 3 || cells[0] == "from" {
				continue
			}
			key := [2]string{cells[0], cells[1]}
			if documented[key] != "" {
				t.Errorf("%v documented twice", key)
			}
			documented[key] = cells[2]
		}
	}
	if len(documented) == 0 {
		t.Fatal("no table found in the comment")
	}
	found := 0
	for s := State(0); s < stateCount; s++ {
		for e := Event(0); e < eventCount; e++ {
			next, err := Next(s, e)
			want := documented[[2]string{s.String(), e.String()}]
			switch {
			case err != nil && want != "":
				t.Errorf("%v on %v: documented as %v, refused by the table", s, e, want)
			case err != nil:
				if next != s || wire.CodeOf(err) != wire.Code_INTERNAL {
					t.Errorf("%v on %v: refused with %v and state %v", s, e, err, next)
				}
			case next.String() != want:
				t.Errorf("%v on %v: table says %v, the comment %q", s, e, next, want)
			default:
				found++
			}
		}
	}
	if found != len(documented) {
		t.Errorf("%d transitions in the table, %d in the comment", found, len(documented))
	}
}

func TestTerminalStatesHaveNoWayOut(t *testing.T) {
	for s := State(0); s < stateCount; s++ {
		out := 0
		for e := Event(0); e < eventCount; e++ {
			if _, err := Next(s, e); err == nil {
				out++
			}
		}
		if s.Terminal() != (out == 0) {
			t.Errorf("%v: terminal %v, %d ways out", s, s.Terminal(), out)
		}
	}
	if _, err := Next(stateCount, Requested); err == nil {
		t.Error("a state that is none took an event")
	}
	if _, err := Next(Idle, eventCount); err == nil {
		t.Error("Idle took an event that is none")
	}
}

// After the pivot there is no way back, and every end can be reached.
func TestForwardOrBack(t *testing.T) {
	reach := func(from State) map[State]bool {
		seen := map[State]bool{from: true}
		for todo := []State{from}; len(todo) > 0; todo = todo[1:] {
			for e := Event(0); e < eventCount; e++ {
				if next, err := Next(todo[0], e); err == nil && !seen[next] {
					seen[next] = true
					todo = append(todo, next)
				}
			}
		}
		return seen
	}
	if got := reach(Idle); len(got) != int(stateCount) {
		t.Errorf("from Idle %d of %d states can be reached", len(got), stateCount)
	}
	if got := reach(Verifying); got[Aborted] || got[Failed] || !got[Completed] {
		t.Errorf("from Verifying: %v", got)
	}
}

func TestStateText(t *testing.T) {
	for s := State(0); s < stateCount; s++ {
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var back State
		if err := json.Unmarshal(b, &back); err != nil || back != s {
			t.Errorf("%s came back as %v, %v", b, back, err)
		}
	}
	var s State
	if err := s.UnmarshalText([]byte("Nowhere")); wire.CodeOf(err) != wire.Code_BAD_REQUEST {
		t.Errorf("got %v", err)
	}
}

func TestStateOfPhase(t *testing.T) {
	for phase := range wire.Phase_name {
		s, ended := StateOf(wire.Phase(phase)), wire.Phase(phase) >= wire.Phase_PHASE_COMPLETED
		if s.Terminal() != ended {
			t.Errorf("%v is %v", wire.Phase(phase), s)
		}
	}
}
