package worker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"unicode/utf8"

	"github.com/baton-cluster/baton/wire"
)

// liveApp holds live state, and notes what its hooks were told.
type liveApp struct {
	mu     sync.Mutex
	live   map[string]string
	calls  []string
	freeze func() error // what OnFreeze does besides, if set
	size   int          // of what it gives up, if not 0
}

func withLive(w *world) *liveApp {
	app := &liveApp{live: map[string]string{}}
	w.mux.OnFreeze(func(session string, f Fence) ([]byte, error) {
		app.mu.Lock()
		then := app.freeze
		app.mu.Unlock()
		if then != nil {
			if err := then(); err != nil {
				return nil, err
			}
		}
		app.mu.Lock()
		defer app.mu.Unlock()
		app.calls = append(app.calls, "freeze "+app.live[session])
		if app.size > 0 {
			return make([]byte, app.size), nil
		}
		return []byte(app.live[session]), nil
	})
	w.mux.OnResume(func(session string, epoch uint64, live []byte, ok bool) {
		app.mu.Lock()
		defer app.mu.Unlock()
		app.calls = append(app.calls, fmt.Sprintf("resume %.8s %v", live, ok))
		app.live[session] = string(live)
	})
	return app
}

func (a *liveApp) set(session, live string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.live[session] = live
}

// told compares the hooks' calls since the last time.
func (a *liveApp) told(t *testing.T, want ...string) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	if fmt.Sprint(a.calls) != fmt.Sprint(want) {
		t.Fatalf("hooks were told %q, want %q", a.calls, want)
	}
	a.calls = nil
}

// TestLiveStateMoves with the session, there and back, and is taken before what
// was parked is run.
func TestLiveStateMoves(t *testing.T) {
	w := newWorld(t, "a", "b")
	app := withLive(w)
	w.mux.Handle("live", func(tx *Tx, _ []byte) ([]byte, error) {
		app.mu.Lock()
		defer app.mu.Unlock()
		return []byte(app.live[tx.Fence().Session]), nil
	})
	c := w.open("a", "s", false)
	app.told(t) // nothing of a session that was opened here
	app.set("s", "one")
	mv := w.begin("s", "a", "b")
	warm := mv.invite(c)
	pivot := w.log.hold(isPivot)
	ch := mv.handover(c)
	p := pivot.next(t)
	seq := warm.write("live", "")
	warm.taken()
	app.told(t, "freeze one")
	app.set("s", "nothing")
	p.apply().answer()
	mv.moved(ch)
	if at := warm.attached(); at.GetGap() {
		t.Fatalf("%v", at)
	}
	warm.ok(seq, "one")
	app.told(t, "resume one true")
	pivot.lift()
	back := w.begin("s", "b", "a")
	home := back.invite(warm)
	back.moved(back.handover(warm))
	home.pivoted(back.m.GetSourceEpoch())
	app.told(t, "freeze one", "resume one true")
}

// TestLiveStateRefused: the hook objects, or what it gives up is too large. The
// session lives on where it is, with its live state.
func TestLiveStateRefused(t *testing.T) {
	cases := []struct {
		name  string
		set   func(*liveApp)
		code  wire.Code
		calls []string
	}{
		{"error", func(a *liveApp) { a.freeze = func() error { return errors.New("busy") } }, wire.Code_HANDLER_ERROR, nil},
		{"typed error", func(a *liveApp) { a.freeze = func() error { return wire.Errorf(wire.Code_OVERLOADED, "busy") } }, wire.Code_OVERLOADED, nil},
		{"panic", func(a *liveApp) { a.freeze = func() error { panic("on purpose") } }, wire.Code_HANDLER_PANIC, nil},
		{"too large", func(a *liveApp) { a.size = wire.LiveBytesMax + 1 }, wire.Code_SNAPSHOT_TOO_LARGE, []string{"freeze one", "resume \x00\x00\x00\x00\x00\x00\x00\x00 true"}},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, "a", "b")
			app := withLive(w)
			c := w.open("a", "s", false)
			app.set("s", "one")
			tc.set(app)
			mv := w.begin("s", "a", "b")
			warm := mv.invite(c)
			mv.failed(mv.handover(c), tc.code)
			c.unfrozen()
			app.told(t, tc.calls...)
			c.ok(c.write("incr", "n"), "1")
			warm.bye(wire.Code_MIGRATION_ENDED)
			if mv.phase() != wire.Phase_PHASE_ABORTED {
				t.Fatal("the migration was not called off")
			}
		})
	}
}

// TestLiveStateAtTheCapMoves.
func TestLiveStateAtTheCapMoves(t *testing.T) {
	w := newWorld(t, "a", "b")
	app := withLive(w)
	c := w.open("a", "s", false)
	app.size = wire.LiveBytesMax
	mv := w.begin("s", "a", "b")
	warm := mv.invite(c)
	mv.moved(mv.handover(c))
	warm.pivoted(mv.m.GetSourceEpoch())
	if n := len(app.live["s"]); n != wire.LiveBytesMax {
		t.Fatalf("%d bytes arrived", n)
	}
}

// TestFreezeHookHangs: the move is called off after the grace. What the hook
// returns at last is given back, and then the session can move.
func TestFreezeHookHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a", "b")
		app := withLive(w)
		c := w.open("a", "s", false)
		app.set("s", "one")
		begun, hang := make(chan struct{}), make(chan struct{})
		app.freeze = func() error { close(begun); <-hang; return nil }
		mv := w.begin("s", "a", "b")
		warm := mv.invite(c)
		ch := mv.handover(c)
		<-begun
		s := w.workers["a"].lookup("s")
		w.clock.waitFor(t, freezeGrace/4, func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.freeze == nil
		})
		mv.failed(ch, wire.Code_OVERLOADED)
		c.unfrozen()
		c.ok(c.write("incr", "n"), "1")
		warm.bye(wire.Code_MIGRATION_ENDED)
		app.told(t)
		app.mu.Lock()
		app.freeze = nil
		app.mu.Unlock()
		close(hang)
		again := w.begin("s", "a", "b")
		warm = again.invite(c)
		again.moved(again.handover(c)) // its hook waits its turn
		warm.pivoted(again.m.GetSourceEpoch())
		app.told(t, "freeze one", "resume one true", "freeze one", "resume one true")
	})
}

// TestResumeHookHangs: the session is served without its live state, and the
// client is told.
func TestResumeHookHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a", "b")
		begun, hang := make(chan struct{}), make(chan struct{})
		w.mux.OnFreeze(func(string, Fence) ([]byte, error) { return []byte("one"), nil })
		w.mux.OnResume(func(string, uint64, []byte, bool) { close(begun); <-hang })
		defer close(hang)
		c := w.open("a", "s", false)
		mv := w.begin("s", "a", "b")
		warm := mv.invite(c)
		ch := mv.handover(c)
		<-begun
		warm.silent()
		var at *wire.Attached
		w.clock.waitFor(t, freezeGrace/4, func() bool {
			select {
			case f := <-warm.link.out:
				at = f.GetAttached()
			default:
			}
			return at != nil
		})
		if !at.GetGap() || !at.GetPivoted() {
			t.Fatalf("%v", at)
		}
		mv.moved(ch)
		warm.ok(warm.write("incr", "n"), "1")
	})
}

// TestLiveStateIsGivenBack when the move is called off after the freeze.
func TestLiveStateIsGivenBack(t *testing.T) {
	w := newWorld(t, "a", "b")
	app := withLive(w)
	w.transfer = func(func(context.Context) (*wire.TransferResp, error), *wire.TransferReq) (*wire.TransferResp, error) {
		return nil, wire.Errorf(wire.Code_UNAVAILABLE, "the connection broke")
	}
	c := w.open("a", "s", false)
	app.set("s", "one")
	mv := w.begin("s", "a", "b")
	mv.invite(c)
	mv.failed(mv.handover(c), wire.Code_UNAVAILABLE)
	c.unfrozen()
	app.told(t, "freeze one", "resume one true")
}

// TestLiveStateIsLostWithItsOwner: who takes over is told once, before it serves,
// and so is each client that was there before.
func TestLiveStateIsLostWithItsOwner(t *testing.T) {
	w := newWorld(t, "a", "b")
	app := withLive(w)
	c := w.open("a", "s", true)
	epoch := w.row("s").GetEpoch()
	app.set("s", "one")
	a := w.workers["a"]
	w.must(&wire.Command{Kind: &wire.Command_FenceWorker{FenceWorker: &wire.FenceWorker{Id: "a", Incarnation: a.Incarnation()}}})
	c.bye(wire.Code_RETRY)
	attach := func(who *client, seen uint64) bool {
		who.serve("b", &wire.ClientFrame{Kind: &wire.ClientFrame_Attach{Attach: &wire.AttachReq{
			Session: "s", Instance: who.instance, Secret: who.secret, Fresh: who != c, Epoch: seen,
		}}})
		return who.attached().GetGap()
	}
	if !attach(c, epoch) {
		t.Fatal("the client was not told")
	}
	app.told(t, "resume  false")
	now := w.row("s").GetEpoch()
	app.set("s", "two")
	c.hangUp()
	w.forgotten("b")
	if attach(c, now) || attach(w.newClient("s", c.secret), 0) {
		t.Fatal("clients that missed nothing were told of a gap")
	}
	app.told(t)
	if late := w.newClient("s", c.secret); !attach(late, epoch) {
		t.Fatal("a client that comes later was not told")
	}
}

// TestLiveStateOfAnotherSnapshot: the pivot that was committed names another
// snapshot than the target has. It activates without live state, and says so (H4).
func TestLiveStateOfAnotherSnapshot(t *testing.T) {
	w := newWorld(t, "a", "b")
	app := withLive(w)
	c := w.open("a", "s", false)
	app.set("s", "one")
	mv := w.begin("s", "a", "b")
	warm := mv.invite(c)
	pivot := w.log.hold(isPivot)
	ch := mv.handover(c)
	p := pivot.next(t)
	w.must(&wire.Command{Kind: &wire.Command_Pivot{Pivot: &wire.CommitPivot{
		Migration: mv.m.GetId(), Change: w.row("s").GetChange(), Digest: 1, Attested: mv.m.GetId(), Warm: [][]byte{c.instance},
	}}})
	p.apply().answer()
	mv.moved(ch)
	warm.bye(wire.Code_MIGRATION_ENDED)
	c.bye(wire.Code_MOVED)
	app.told(t, "freeze one")
	c.serve("b", &wire.ClientFrame{Kind: &wire.ClientFrame_Attach{Attach: &wire.AttachReq{
		Session: "s", Instance: c.instance, Secret: c.secret, Epoch: mv.m.GetSourceEpoch(),
	}}})
	if !c.attached().GetGap() {
		t.Fatal("the client was not told")
	}
	app.told(t, "resume  false")
	w.forgotten("a")
	if len(w.workers["a"].live.ids()) != 0 {
		t.Fatal("the source still keeps what the application was told")
	}
}

// TestPanicOfAHookIsCommittable, whatever the application panics with.
func TestPanicOfAHookIsCommittable(t *testing.T) {
	m := NewMux()
	m.OnFreeze(func(string, Fence) ([]byte, error) { panic("\xff" + strings.Repeat("x", 1<<20)) })
	_, err := m.freeze("s", Fence{})
	if err == nil || !utf8.ValidString(err.Error()) || len(err.Error()) > 2*errorBytesMax {
		t.Fatalf("%.80q of %d bytes", err, len(err.Error()))
	}
}
