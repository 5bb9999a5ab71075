package membership

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
)

// handClock moves by hand.
type handClock struct {
	seam.OSClock
	now time.Duration
}

func (c *handClock) Now() time.Duration { return c.now }

func newTestTable(clock seam.Clock) *table {
	return &table{
		self: "self", clock: clock, probeEvery: time.Second, clusterID: func() []byte { return nil },
		changed: func() {}, members: map[string]*entry{},
	}
}

func node(id string, m meta) *memberlist.Node {
	return &memberlist.Node{Name: id, Meta: m.encode()}
}

func stateOf(t *table, id string) State {
	for _, m := range t.list() {
		if m.ID == id {
			return m.State
		}
	}
	return ""
}

// A member is suspect from here when its turn to be probed passed unanswered.
func TestTableSuspects(t *testing.T) {
	clock := &handClock{}
	tab := newTestTable(clock)
	for _, id := range []string{"self", "a", "b"} {
		tab.NotifyJoin(node(id, meta{name: id}))
	}
	clock.now = 4 * time.Second // (3+1) probes
	if got := stateOf(tab, "a"); got != Alive {
		t.Errorf("%s in time", got)
	}
	clock.now += time.Nanosecond
	tab.NotifyPingComplete(node("b", meta{}), 0, nil)
	for id, want := range map[string]State{"a": Suspect, "b": Alive, "self": Alive} {
		if got := stateOf(tab, id); got != want {
			t.Errorf("%s is %s, want %s", id, got, want)
		}
	}
	if alive, known := tab.alive("a"); !alive || !known {
		t.Error("a suspect is not dead")
	}
	tab.NotifyLeave(node("a", meta{name: "a"}))
	tab.NotifyUpdate(node("b", meta{name: "b", leaving: true}))
	tab.NotifyLeave(node("b", meta{name: "b", leaving: true}))
	if a, b := stateOf(tab, "a"), stateOf(tab, "b"); a != Dead || b != Left {
		t.Errorf("%s, %s; want dead, left", a, b)
	}
	tab.NotifyPingComplete(node("stranger", meta{}), 0, nil)
	if stateOf(tab, "stranger") != "" {
		t.Error("a ping made a member")
	}
}

// The table is bounded: the longest dead goes first, the living never.
func TestTableIsBounded(t *testing.T) {
	clock := &handClock{}
	tab := newTestTable(clock)
	for i := range membersMax {
		clock.now++
		tab.NotifyJoin(node(fmt.Sprint(i), meta{}))
	}
	if err := tab.NotifyAlive(node("one more", meta{})); wire.CodeOf(err) != wire.Code_TOO_MANY {
		t.Fatalf("%v", err)
	}
	if err := tab.NotifyAlive(node("7", meta{})); err != nil {
		t.Fatalf("a known member: %v", err)
	}
	for _, id := range []string{"9", "8"} {
		clock.now++
		tab.NotifyLeave(node(id, meta{}))
	}
	if err := tab.NotifyAlive(node("one more", meta{})); err != nil {
		t.Fatal(err)
	}
	tab.NotifyJoin(node("one more", meta{}))
	if len(tab.members) != membersMax || stateOf(tab, "9") != "" || stateOf(tab, "8") != Dead || stateOf(tab, "one more") != Alive {
		t.Errorf("%d members; 9 is %q, 8 is %q", len(tab.members), stateOf(tab, "9"), stateOf(tab, "8"))
	}
}

func TestTableRefuses(t *testing.T) {
	tab := newTestTable(&handClock{})
	tab.clusterID = func() []byte { return []byte("ours") }
	for name, tt := range map[string]struct {
		node *memberlist.Node
		want wire.Code
	}{
		"ours":       {node("a", meta{cluster: "ours"}), wire.Code_OK},
		"not known":  {node("a", meta{}), wire.Code_OK},
		"theirs":     {node("a", meta{cluster: "theirs"}), wire.Code_WRONG_CLUSTER},
		"no id":      {node("", meta{}), wire.Code_BAD_REQUEST},
		"long id":    {node(strings.Repeat("x", idBytesMax+1), meta{}), wire.Code_BAD_REQUEST},
		"no meta":    {&memberlist.Node{Name: "a"}, wire.Code_BAD_REQUEST},
		"other meta": {&memberlist.Node{Name: "a", Meta: []byte{9, 9}}, wire.Code_WRONG_VERSION},
	} {
		if err := tab.NotifyAlive(tt.node); wire.CodeOf(err) != tt.want {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
}

func TestMeta(t *testing.T) {
	largest := meta{leaving: true, name: strings.Repeat("n", nameBytesMax), addr: strings.Repeat("a", addrBytesMax), cluster: strings.Repeat("c", clusterBytesMax)}
	if n := len(largest.encode()); n > memberlist.MetaMaxSize {
		t.Fatalf("the largest meta has %d bytes: memberlist panics over %d", n, memberlist.MetaMaxSize)
	}
	for _, m := range []meta{{}, {name: "n1", addr: "h:1"}, largest} {
		got, err := decodeMeta(m.encode())
		if err != nil || got != m {
			t.Errorf("%+v, %v; want %+v", got, err, m)
		}
		// A later version's additions are skipped.
		if got, err = decodeMeta(append(m.encode(), "more"...)); err != nil || got != m {
			t.Errorf("with more behind: %+v, %v", got, err)
		}
	}
}

func FuzzDecodeMeta(f *testing.F) {
	f.Add([]byte{})
	f.Add(meta{name: "n", addr: "a:1", cluster: "c"}.encode())
	f.Add([]byte{1, 0, 255, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decodeMeta(b)
		if err != nil {
			return
		}
		again, err := decodeMeta(m.encode())
		if err != nil || again != m {
			t.Fatalf("%+v became %+v, %v", m, again, err)
		}
	})
}

// Garbage from strangers must not fill the disk with log lines.
func TestLogIsLimited(t *testing.T) {
	var out bytes.Buffer
	clock := &handClock{now: time.Hour}
	w := &logWriter{log: slog.New(slog.NewTextHandler(&out, nil)), clock: clock}
	for range 1000 {
		if n, err := w.Write([]byte("[ERR] memberlist: junk from afar\n")); n != 33 || err != nil {
			t.Fatal(n, err)
		}
	}
	if n := strings.Count(out.String(), "junk from afar"); n != logLinesMax {
		t.Errorf("%d lines, want %d", n, logLinesMax)
	}
	clock.now += time.Second
	_, _ = w.Write([]byte("[INFO] memberlist: later"))
	if !strings.Contains(out.String(), "dropped=980") || !strings.Contains(out.String(), `level=INFO msg="gossip: later"`) {
		t.Errorf("%s", out.String())
	}
	for line, want := range map[string]slog.Level{
		"[WARN] memberlist: x": slog.LevelInfo, "[DEBUG] memberlist: x": slog.LevelDebug, "bare": slog.LevelDebug, "[": slog.LevelDebug, "": slog.LevelDebug,
	} {
		if got, _ := parseLine([]byte(line)); got != want {
			t.Errorf("%q: %v, want %v", line, got, want)
		}
	}
}
