package worker

import (
	"testing"

	"github.com/baton-cluster/baton/wire"
)

// committing is a stream method whose handler commits once and says what came of
// it. Its cookie keeps it from committing a second time.
func committing(w *world, fn func(*Tx) error) {
	w.mux.HandleStream("commit", func(st *ServerStream) error {
		if cookie, _ := st.Resumed(); len(cookie) == 0 {
			if err := st.Commit(fn); err != nil {
				return err
			}
			if err := st.Ack(0, []byte("committed")); err != nil {
				return err
			}
		}
		_, err := st.Write([]byte("done"))
		return err
	}, Resumable())
}

// wantsCommit waits until the handler has the client asked, and returns the payload.
func (f *flow) wantsCommit() string {
	f.c.t.Helper()
	for f.asked = nil; f.asked == nil; {
		if b := f.take(); b != nil {
			f.c.t.Fatalf("no commit is wanted, but %v", b)
		}
	}
	return string(f.asked)
}

func putX(tx *Tx) error { return tx.Put("x", []byte("1")) }

func TestStreamCommits(t *testing.T) {
	w := streamWorld(t, "a")
	committing(w, putX)
	c := w.open("a", "s", true)
	f := c.flow("a", "commit")
	f.opened()
	payload := f.wantsCommit()
	f.c.hangUp() // asked again on the next link
	f.connect(c, "a")
	f.opened()
	if again := f.wantsCommit(); again != payload {
		t.Fatalf("asked for %q and then for %q", payload, again)
	}
	// Nobody else can have it run: not another client, nor another stream's.
	other := w.open("a", "t", false)
	if r := other.response(other.write(wire.StreamCommitMethod, payload)); r.GetCode() != wire.Code_STREAM_ENDED {
		t.Fatalf("another session's client: %v", r)
	}
	other = w.newClient("s", c.secret)
	other.attach("a", true)
	other.attached()
	if r := other.response(other.write(wire.StreamCommitMethod, payload)); r.GetCode() != wire.Code_STREAM_ENDED {
		t.Fatalf("another client: %v", r)
	}
	if r := c.response(c.write(wire.StreamCommitMethod, "garbage")); r.GetCode() != wire.Code_STREAM_ENDED {
		t.Fatalf("garbage: %v", r)
	}
	writes := w.log.hold(isWrite)
	seq := c.write(wire.StreamCommitMethod, payload)
	p := writes.next(t)
	if f.fin != nil || w.state("s", "x") != "none" {
		t.Fatal("it is done before it is committed")
	}
	writes.lift()
	p.apply().answer()
	c.ok(seq, "")
	f.ended(wire.Code_OK)
	if string(f.got) != "done" || w.state("s", "x") != "1" {
		t.Fatalf("%q, x is %s", f.got, w.state("s", "x"))
	}
	// A call that comes late finds nobody who waits.
	if r := c.response(c.write(wire.StreamCommitMethod, payload)); r.GetCode() != wire.Code_STREAM_ENDED {
		t.Fatalf("a late call: %v", r)
	}
}

func TestStreamCommitRefused(t *testing.T) {
	w := streamWorld(t, "a")
	committing(w, func(tx *Tx) error {
		_ = tx.Put("x", []byte("1"))
		return wire.Errorf(wire.Code_BAD_REQUEST, "no")
	})
	c := w.open("a", "s", false)
	f := c.flow("a", "commit")
	f.opened()
	c.write(wire.StreamCommitMethod, f.wantsCommit())
	f.ended(wire.Code_BAD_REQUEST)
	if w.state("s", "x") != "none" {
		t.Fatal("a refused commit has left something")
	}
}

// TestStreamCommitsEachOnce: a call for an earlier commit does not run a later one.
func TestStreamCommitsEachOnce(t *testing.T) {
	w := streamWorld(t, "a")
	w.mux.HandleStream("twice", func(st *ServerStream) error {
		for range 2 {
			if err := st.Commit(func(tx *Tx) error { _, err := tx.Incr("x", 1); return err }); err != nil {
				return err
			}
		}
		return nil
	})
	c := w.open("a", "s", false)
	f := c.flow("a", "twice")
	f.opened()
	one := f.wantsCommit()
	c.ok(c.write(wire.StreamCommitMethod, one), "")
	two := f.wantsCommit()
	if r := c.response(c.write(wire.StreamCommitMethod, one)); r.GetCode() != wire.Code_STREAM_ENDED || w.state("s", "x") != "1" {
		t.Fatalf("the first again: %v, x is %s", r, w.state("s", "x"))
	}
	c.ok(c.write(wire.StreamCommitMethod, two), "")
	f.ended(wire.Code_OK)
	if w.state("s", "x") != "2" {
		t.Fatalf("x is %s", w.state("s", "x"))
	}
}

// TestStreamCommitAndMove: a commit under way is finished before the move, and one whose client does not call is
// given up: its handler begins anew at the target and commits there, once.
func TestStreamCommitAndMove(t *testing.T) {
	for _, calls := range []bool{true, false} {
		w := streamWorld(t, "a", "b")
		committing(w, func(tx *Tx) error { _, err := tx.Incr("x", 1); return err })
		c := w.open("a", "s", false)
		f := c.flow("a", "commit")
		f.opened()
		payload := f.wantsCommit()
		writes := w.log.hold(isWrite)
		mv := w.begin("s", "a", "b")
		warm := mv.invite(c)
		if calls {
			c.write(wire.StreamCommitMethod, payload)
			p := writes.next(t)
			ch := mv.handover(c)
			w.stopping("a", "s")
			writes.lift()
			p.apply().answer()
			mv.moved(ch)
		} else {
			writes.lift()
			f.c.hangUp()
			mv.moved(mv.handover(c))
		}
		warm.seq, warm.last = c.seq, c.last
		warm.pivoted(mv.m.GetSourceEpoch())
		f.connect(warm, "b")
		f.opened()
		if !calls {
			// The former call, late, is another epoch's.
			if r := warm.response(warm.write(wire.StreamCommitMethod, payload)); r.GetCode() != wire.Code_STREAM_ENDED {
				t.Fatalf("a call of the former epoch: %v", r)
			}
			warm.write(wire.StreamCommitMethod, f.wantsCommit())
		}
		f.ended(wire.Code_OK)
		if w.state("s", "x") != "1" {
			t.Fatalf("x is %s", w.state("s", "x"))
		}
	}
}
