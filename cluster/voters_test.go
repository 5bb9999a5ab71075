package cluster

import (
	"slices"
	"testing"

	"github.com/hashicorp/raft"
)

func configEntry(index uint64, voters ...string) *raft.Log {
	c := raft.Configuration{Servers: []raft.Server{{Suffrage: raft.Nonvoter, ID: "joiner", Address: "j"}}}
	for _, id := range voters {
		c.Servers = append(c.Servers, raft.Server{ID: raft.ServerID(id), Address: raft.ServerAddress(id)})
	}
	return &raft.Log{Index: index, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(c)}
}

// L4: the voters' index follows the log, is rolled back when the log is, and
// comes again when raft reads its log at a start.
func TestVotersFollowTheLog(t *testing.T) {
	store := raft.NewInmemStore()
	open := func() *guardedLog {
		return &guardedLog{store: store, guard: &guard{clock: &offsetClock{}, limit: 1 << 40, fail: func(err error) { t.Error(err) }}, cache: &logCache{}}
	}
	base := VoterConfig{Index: 1, Voters: []string{"a", "b", "c"}}
	check := func(l *guardedLog, applied, index uint64, voters ...string) {
		t.Helper()
		if v := l.voters.latest(base, applied); v.Index != index || !slices.Equal(v.Voters, voters) {
			t.Fatalf("latest is %d of %v, want %d of %v", v.Index, v.Voters, index, voters)
		}
	}
	l := open()
	append := func(e *raft.Log) {
		t.Helper()
		if err := l.StoreLogs([]*raft.Log{e}); err != nil {
			t.Fatal(err)
		}
	}
	append(configEntry(1, "c", "a", "b"))
	append(&raft.Log{Index: 2})
	check(l, 2, 1, "a", "b", "c")
	append(configEntry(3, "a", "b", "c")) // a worker joined
	check(l, 2, 1, "a", "b", "c")
	append(configEntry(4, "a", "b"))
	append(configEntry(5, "a", "b"))
	check(l, 2, 4, "a", "b")

	again := open()
	for i := uint64(3); i <= 5; i++ {
		var e raft.Log
		if err := again.GetLog(i, &e); err != nil {
			t.Fatal(err)
		}
	}
	check(again, 2, 4, "a", "b")

	if err := l.DeleteRange(4, 5); err != nil {
		t.Fatal(err)
	}
	check(l, 2, 1, "a", "b", "c")
	// A snapshot replaced what the log has up to 9: its row counts.
	append(configEntry(4, "x"))
	base = VoterConfig{Index: 7, Voters: []string{"a", "d"}}
	check(l, 9, 7, "a", "d")
}
