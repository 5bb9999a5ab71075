package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"os"

	"github.com/baton-cluster/baton"
)

// story builds a history by hand. Times are whatever the test says.
type story struct{ h History }

func (s *story) op(o Op) *story {
	o.Acked = o.Code == ""
	if o.Session == "" {
		o.Session = "s"
	}
	s.h.Ops = append(s.h.Ops, o)
	return s
}

// incr adds an acknowledged increment that took from start to end.
func (s *story) incr(start, end, value int64, epoch, index uint64, owner string) *story {
	return s.op(Op{Kind: kindIncr, StartUS: start, EndUS: end, Value: value, Epoch: epoch, Index: index, Owner: owner})
}

func (s *story) final(through string, counter, version int64) *story {
	s.h.Finals = append(s.h.Finals, Final{Session: "s", Through: through, Counter: counter, Version: version})
	return s
}

func (s *story) owned(epoch uint64, owner string, migration uint64) *story {
	if s.h.Owners == nil {
		s.h.Owners = map[string][]baton.OwnerChange{}
	}
	s.h.Owners["s"] = append(s.h.Owners["s"], baton.OwnerChange{Epoch: epoch, Owner: owner, Migration: migration})
	return s
}

func (s *story) served(epoch uint64, worker string, incarnation, first, last uint64) *story {
	s.h.Servings = append(s.h.Servings, baton.Serving{Session: "s", Epoch: epoch, Worker: worker, Incarnation: incarnation, First: first, Last: last})
	return s
}

// good is a session that moved from a to b, with everything in order.
func good() *story {
	s := &story{}
	s.h.Keys = []SessionKey{{Session: "s"}}
	s.h.Names = map[string]string{"id-a": "a", "id-b": "b"}
	s.incr(0, 10, 1, 5, 100, "a").incr(20, 30, 2, 5, 101, "a").incr(40, 60, 3, 7, 200, "b")
	s.op(Op{Kind: kindPut, StartUS: 61, EndUS: 62, Value: 1, Epoch: 7, Index: 201, Owner: "b"})
	s.op(Op{Kind: kindGet, StartUS: 63, EndUS: 64, Value: 1, Epoch: 7, Index: 201, Owner: "b"})
	s.op(Op{Kind: kindCount, StartUS: 63, EndUS: 64, Value: 3, Epoch: 7, Index: 201, Owner: "b"})
	s.op(Op{Kind: kindPush, StartUS: 65, EndUS: 66, Value: 1, Epoch: 7, Index: 202, Owner: "b"})
	s.h.Deliveries = []Delivery{{"s", 1, 7, 1}}
	s.owned(5, "a", 0).owned(7, "b", 42)
	s.served(5, "id-a", 1, 99, 101).served(7, "id-b", 2, 150, 202)
	s.h.Migrations = []baton.MigrationInfo{{Migration: 42, Session: "s", State: "Completed", From: "a", To: "b", Epoch: 7}}
	s.h.Rows = map[string]baton.SessionInfo{"s": {ID: "s", Epoch: 7, NextSeq: 9}}
	return s.final("a", 3, 1)
}

func TestCheckCleanHistory(t *testing.T) {
	s := good()
	if f := check(&s.h); !f.clean() {
		t.Fatalf("a good history was found wrong: %+v", f)
	}
	if n := s.h.pivots(); n != 1 {
		t.Errorf("pivots = %d, want 1", n)
	}
}

// TestCheckFinds feeds histories with one fault each. What stands in want must
// be found, and a fault that is one thing must not be called another.
func TestCheckFinds(t *testing.T) {
	type counts struct{ lost, duplicated, doubleOwned, stale, refused, contradictions int }
	cases := []struct {
		name  string
		fault func(*story)
		want  counts
	}{
		{"an acknowledged increment is missing at the end", func(s *story) {
			s.h.Finals = nil
			s.final("a", 2, 1)
		}, counts{lost: 1}},
		{"two increments are missing at the end, by one reader of two", func(s *story) {
			s.final("c", 1, 1)
		}, counts{lost: 2}},
		{"an increment was overwritten by an owner that had not seen it", func(s *story) {
			s.incr(70, 80, 3, 7, 203, "b")
		}, counts{lost: 1}},
		{"an increment was applied twice", func(s *story) {
			s.h.Finals = nil
			s.incr(70, 80, 5, 7, 203, "b").final("a", 5, 1)
		}, counts{duplicated: 1}},
		{"the counter is higher than everything that was asked for", func(s *story) {
			s.h.Finals = nil
			s.final("a", 4, 1)
		}, counts{duplicated: 1}},
		{"an unanswered increment explains one more, but not two", func(s *story) {
			s.h.Finals = nil
			s.op(Op{Kind: kindIncr, StartUS: 70, EndUS: 90, Code: "deadline_exceeded"}).final("a", 5, 1)
		}, counts{duplicated: 1, refused: 1}},
		{"an acknowledged put is missing at the end", func(s *story) {
			s.op(Op{Kind: kindPut, StartUS: 70, EndUS: 71, Value: 2, Epoch: 7, Index: 203, Owner: "b"})
		}, counts{lost: 1}},
		{"a final read failed", func(s *story) {
			s.h.Finals[0].Err = "unknown_session"
		}, counts{lost: 1}},
		{"the session is gone", func(s *story) {
			s.op(Op{Kind: kindGet, StartUS: 70, EndUS: 71, Code: "unknown_session"})
		}, counts{lost: 1}},
		{"a call was refused", func(s *story) {
			s.op(Op{Kind: kindGet, StartUS: 70, EndUS: 71, Code: "displaced"})
		}, counts{refused: 1}},
		{"a call was cancelled, as it took too long", func(s *story) {
			s.op(Op{Kind: kindGet, StartUS: 70, EndUS: 71, Code: "cancelled"})
		}, counts{refused: 1}},
		{"of a load that was interrupted another call was refused", func(s *story) {
			s.h.Interrupted = true
			s.op(Op{Kind: kindGet, StartUS: 70, EndUS: 71, Code: "cancelled"})
			s.op(Op{Kind: kindGet, StartUS: 72, EndUS: 73, Code: "displaced"})
		}, counts{refused: 1}},
		{"a read of the counter returned less than was acknowledged", func(s *story) {
			s.op(Op{Kind: kindCount, StartUS: 70, EndUS: 71, Value: 2, Epoch: 7, Owner: "b"})
		}, counts{stale: 1}},
		{"a read of the register returned less than was acknowledged", func(s *story) {
			s.op(Op{Kind: kindGet, StartUS: 70, EndUS: 71, Value: 0, Epoch: 7, Owner: "b"})
		}, counts{stale: 1}},
		{"a read returned less than an earlier read", func(s *story) {
			s.op(Op{Kind: kindIncr, StartUS: 70, EndUS: 100, Value: 4, Epoch: 7, Index: 203, Owner: "b"})
			s.op(Op{Kind: kindCount, StartUS: 71, EndUS: 72, Value: 4, Epoch: 7, Owner: "b"})
			s.op(Op{Kind: kindCount, StartUS: 73, EndUS: 74, Value: 3, Epoch: 7, Owner: "b"})
			s.h.Finals[0].Counter = 4
		}, counts{stale: 1}},
		{"a read returned what nobody wrote", func(s *story) {
			s.op(Op{Kind: kindGet, StartUS: 70, EndUS: 71, Value: 9, Epoch: 7, Owner: "b"})
		}, counts{contradictions: 1}},
		{"a push came twice", func(s *story) {
			s.h.Deliveries = append(s.h.Deliveries, Delivery{"s", 2, 7, 1})
		}, counts{duplicated: 1}},
		{"a push came with a number that was used", func(s *story) {
			s.op(Op{Kind: kindPush, StartUS: 70, EndUS: 71, Value: 2, Epoch: 7, Index: 203, Owner: "b"})
			s.h.Deliveries = append(s.h.Deliveries, Delivery{"s", 1, 7, 2})
		}, counts{duplicated: 1}},
		{"an acknowledged push never came", func(s *story) {
			s.h.Deliveries = nil
		}, counts{lost: 1}},
		{"two nodes answered under one epoch", func(s *story) {
			s.incr(70, 80, 4, 7, 203, "a")
			s.h.Finals[0].Counter = 4
		}, counts{doubleOwned: 1}},
		{"two nodes recorded one epoch", func(s *story) {
			s.served(7, "id-a", 1, 150, 160)
		}, counts{doubleOwned: 1}},
		{"two incarnations of a node recorded one epoch", func(s *story) {
			s.served(7, "id-b", 8, 150, 160)
		}, counts{doubleOwned: 1}},
		{"the old owner's record reaches into the new one's", func(s *story) {
			s.h.Servings[0].Last = 151
		}, counts{doubleOwned: 1}},
		{"a write of the old epoch has a later position than one of the new", func(s *story) {
			s.op(Op{Kind: kindIncr, StartUS: 35, EndUS: 100, Value: 4, Epoch: 5, Index: 205, Owner: "a"})
			s.h.Finals[0].Counter = 4
		}, counts{doubleOwned: 1}},
		{"the old owner answered a call that began after the new one had answered", func(s *story) {
			s.op(Op{Kind: kindCount, StartUS: 70, EndUS: 71, Value: 3, Epoch: 5, Owner: "a"})
		}, counts{doubleOwned: 1}},
		{"a node served under an epoch that the cluster never gave", func(s *story) {
			s.op(Op{Kind: kindCount, StartUS: 70, EndUS: 71, Value: 3, Epoch: 9, Owner: "c"})
			s.h.Rows = nil
		}, counts{doubleOwned: 1}},
		{"the row is behind what was acknowledged", func(s *story) {
			s.h.Rows["s"] = baton.SessionInfo{ID: "s", Epoch: 6, NextSeq: 9}
		}, counts{contradictions: 1}},
		{"the row does not know an acknowledged seq", func(s *story) {
			s.op(Op{Kind: kindPush, StartUS: 70, EndUS: 71, Value: 2, Seq: 9, Epoch: 7, Index: 203, Owner: "b"})
			s.h.Deliveries = append(s.h.Deliveries, Delivery{"s", 2, 7, 2})
		}, counts{lost: 1}},
		{"a finished migration is not in the session's history", func(s *story) {
			s.h.Owners["s"][1].Migration = 0
		}, counts{contradictions: 1}},
	}
	for _, c := range cases {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			s := good()
			c.fault(s)
			f := check(&s.h)
			got := counts{f.Lost, f.Duplicated, f.DoubleOwned, f.StaleReads, f.Refused, f.Contradictions}
			if got != c.want {
				t.Errorf("found %+v, want %+v\n%s", got, c.want, strings.Join(f.Violations, "\n"))
			}
			if f.clean() || len(f.Violations) == 0 {
				t.Error("nothing was said of it")
			}
		})
	}
}

// TestCheckConcurrent: what overlaps in time may return in any order.
func TestCheckConcurrent(t *testing.T) {
	s := &story{}
	s.h.Keys = []SessionKey{{Session: "s"}}
	s.incr(0, 100, 2, 5, 100, "a").incr(0, 100, 1, 5, 100, "a").incr(0, 100, 3, 5, 100, "a")
	s.op(Op{Kind: kindCount, StartUS: 50, EndUS: 90, Value: 0, Epoch: 5, Owner: "a"})
	s.op(Op{Kind: kindCount, StartUS: 100, EndUS: 190, Value: 3, Epoch: 5, Owner: "a"})
	// An unanswered increment may have happened or not.
	s.op(Op{Kind: kindIncr, StartUS: 200, EndUS: 300, Code: "canceled"})
	for _, counter := range []int64{3, 4} {
		s.h.Finals = []Final{{Session: "s", Through: "b", Counter: counter}}
		f := check(&s.h)
		if f.Lost+f.Duplicated+f.DoubleOwned+f.StaleReads+f.Contradictions != 0 {
			t.Errorf("final %d: %+v", counter, f)
		}
	}
}

func TestViolationsAreBoundedAndCountsAreNot(t *testing.T) {
	s := &story{}
	for i := range 100 {
		id := fmt.Sprintf("s%03d", i)
		s.h.Keys = append(s.h.Keys, SessionKey{Session: id})
		s.op(Op{Session: id, Kind: kindGet, Code: "unknown_session"})
	}
	f := check(&s.h)
	if f.Lost != 100 || len(f.Violations) != violationsMax {
		t.Errorf("lost %d with %d descriptions, want 100 with %d", f.Lost, len(f.Violations), violationsMax)
	}
}

// TestFailovers: only sessions of the dead node count that answered again, and
// only if the cluster's history says that they were assigned anew.
func TestFailovers(t *testing.T) {
	s := &story{}
	add := func(id string, migration uint64, epoch uint64, end int64) {
		s.h.Owners[id] = []baton.OwnerChange{{Epoch: 1, Owner: "a"}, {Epoch: epoch, Owner: "b", Migration: migration}}
		s.op(Op{Session: id, Kind: kindCount, StartUS: 0, EndUS: end, Epoch: epoch, Owner: "b"})
	}
	s.h.Owners = map[string][]baton.OwnerChange{}
	add("failed-over", 0, 4, 1500)
	add("migrated", 9, 5, 1600)
	add("of-another", 0, 6, 1700)
	took := s.h.failovers([]Outage{{Node: "a", AtUS: 1000, Owned: map[string]uint64{"failed-over": 1, "migrated": 1, "never-again": 1}}})
	if len(took) != 1 || took[0] != 500 {
		t.Errorf("failovers took %v, want [500]", took)
	}
}

func TestMergeServingsKeepsWhatARestartForgets(t *testing.T) {
	old := []baton.Serving{{Session: "s", Epoch: 1, Worker: "a", Incarnation: 1, First: 10, Last: 20}}
	got := mergeServings(old, []baton.Serving{
		{Session: "s", Epoch: 1, Worker: "a", Incarnation: 1, First: 15, Last: 30},
		{Session: "s", Epoch: 2, Worker: "b", Incarnation: 2, First: 40, Last: 50},
	})
	if len(got) != 2 || got[0].First != 10 || got[0].Last != 30 {
		t.Errorf("merged to %+v", got)
	}
	if got = mergeServings(got, nil); len(got) != 2 {
		t.Errorf("an empty answer changed it to %+v", got)
	}
}

func TestQuantiles(t *testing.T) {
	if q := quantiles(nil); q != (baton.Quantiles{}) {
		t.Errorf("of nothing: %+v", q)
	}
	v := make([]int64, 101)
	for i := range v {
		v[i] = int64(100 - i)
	}
	if q := quantiles(v); q.P50 != 50 || q.P99 != 99 || q.Max != 100 {
		t.Errorf("of 0..100: %+v", q)
	}
}

func TestLedgerFile(t *testing.T) {
	l := newLedger()
	l.addKey(SessionKey{"s", "00ff", true})
	_ = l.do("s", kindIncr, func() (int64, baton.Reply, error) {
		return 7, baton.Reply{Epoch: 3, Seq: 4, Change: 5, Node: "a", Attempts: 2}, nil
	})
	l.addDelivery(Delivery{"s", 1, 3, 9})
	l.addMove(MoveSeen{"s", 3, "b", "a", true, 12})
	path := filepath.Join(t.TempDir(), "ledger")
	if err := l.save(path); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("a ledger holds secrets: mode %v, %v", info.Mode(), err)
	}
	h, err := openLedger(path)
	if err != nil {
		t.Fatal(err)
	}
	want := l.history()
	if fmt.Sprintf("%+v", *h) != fmt.Sprintf("%+v", want) {
		t.Errorf("read back %+v, want %+v", *h, want)
	}
	if o := h.Ops[0]; !o.Acked || o.Value != 7 || o.Epoch != 3 || o.Index != 5 || o.Owner != "a" || o.Attempts != 2 {
		t.Errorf("op %+v", o)
	}
}

func FuzzReadLedger(f *testing.F) {
	f.Add(`{"key":{"session":"s","secret":"00"}}` + "\n" + `{"op":{"session":"s","kind":"incr","acked":true,"value":1}}`)
	f.Add(`{"delivery":{"session":"s","seq":1}}` + "\n{}")
	f.Fuzz(func(t *testing.T, text string) {
		h, err := readLedger(strings.NewReader(text))
		if err == nil {
			check(&h) // never panics
		}
	})
}
