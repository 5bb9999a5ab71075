package worker

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton/migrate"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// largeLive needs several chunks, the last of them partly filled.
const largeLive = 5*migrate.ChunkBytes + 77

var errCut = wire.Errorf(wire.Code_UNAVAILABLE, "the connection broke")

// link is the connection between two workers, on which a test plays.
type link struct {
	mu    sync.Mutex
	calls int
	bytes int
	// on is called for each message, with its number; it may call through.
	on func(n int, next func() (*wire.TransferResp, error), req *wire.TransferReq) (*wire.TransferResp, error)
}

func (w *world) play(on func(n int, next func() (*wire.TransferResp, error), req *wire.TransferReq) (*wire.TransferResp, error)) *link {
	l := &link{on: on}
	w.transfer = func(next func(context.Context) (*wire.TransferResp, error), req *wire.TransferReq) (*wire.TransferResp, error) {
		l.mu.Lock()
		l.calls++
		n := l.calls
		l.bytes += len(req.GetSealed())
		l.mu.Unlock()
		return l.on(n, func() (*wire.TransferResp, error) { return next(context.Background()) }, req)
	}
	return l
}

// large is a session with live state of several chunks that is about to move.
func large(t *testing.T) (w *world, app *liveApp, c, warm *client, mv *move, live string) {
	t.Helper()
	w = newWorld(t, "a", "b")
	app = withLive(w)
	c = w.open("a", "s", false)
	live = string(fresh(largeLive))
	app.set("s", live)
	mv = w.begin("s", "a", "b")
	return w, app, c, mv.invite(c), mv, live
}

// settle lets time pass until the handover has come to an end.
func (mv *move) settle(ch chan handed) chan handed {
	mv.t.Helper()
	out := make(chan handed, 1)
	mv.w.clock.waitFor(mv.t, resumePause, func() bool {
		select {
		case h := <-ch:
			out <- h
			return true
		default:
			return false
		}
	})
	return out
}

// stayed checks that the session lives on at the source with its live state, and
// that the log tells why it did not move.
func (mv *move) stayed(t *testing.T, app *liveApp, c, warm *client, live, why string) {
	t.Helper()
	c.unfrozen()
	warm.bye(wire.Code_MIGRATION_ENDED)
	c.ok(c.write("incr", "n"), "1")
	if m := mv.logged(); m.GetPhase() != wire.Phase_PHASE_ABORTED || !strings.Contains(m.GetWhy(), why) {
		t.Errorf("the log says %v, %q: not %q", m.GetPhase(), m.GetWhy(), why)
	}
	app.mu.Lock()
	defer app.mu.Unlock()
	if app.live["s"] != live {
		t.Error("the live state is not what it was")
	}
	if used := mv.to.arriving.used.Load(); used != 0 {
		t.Errorf("the target still holds %d bytes", used)
	}
}

// arrivedWhole checks that the session serves at the target, with its live state.
func (mv *move) arrivedWhole(t *testing.T, app *liveApp, warm *client, live string) {
	t.Helper()
	warm.pivoted(mv.m.GetSourceEpoch())
	warm.ok(warm.write("incr", "n"), "1")
	app.mu.Lock()
	defer app.mu.Unlock()
	if app.live["s"] != live {
		t.Error("the live state is not what it was")
	}
	if used := mv.to.arriving.used.Load(); used != 0 {
		t.Errorf("the target still holds %d bytes", used)
	}
}

// TestTransferGoesOnAfterACut of the connection, at any chunk, on the way there
// or back: behind what the target has.
func TestTransferGoesOnAfterACut(t *testing.T) {
	for _, back := range []bool{false, true} {
		for at := 1; at <= 6; at++ {
			t.Run(fmt.Sprintf("chunk %d, answer %v", at, back), inBubble(func(t *testing.T) {
				w, app, _, warm, mv, live := large(t)
				l := w.play(func(n int, next func() (*wire.TransferResp, error), _ *wire.TransferReq) (*wire.TransferResp, error) {
					if n == at && back {
						_, _ = next()
					}
					if n == at {
						return nil, errCut
					}
					return next()
				})
				mv.moved(mv.settle(mv.handover(warm)))
				mv.arrivedWhole(t, app, warm, live)
				if most := largeLive + migrate.StateEnvelopeBytesMax + migrate.TransferWindow*migrate.ChunkBytes; l.bytes > most {
					t.Errorf("%d bytes were sent, %d are enough", l.bytes, most)
				}
			}))
		}
	}
}

// TestTransferCutForGood: the source gives up, and the session stays.
func TestTransferCutForGood(t *testing.T) {
	for at := 1; at <= 6; at++ {
		t.Run(fmt.Sprintf("from chunk %d on", at), inBubble(func(t *testing.T) {
			w, app, c, warm, mv, live := large(t)
			w.play(func(n int, next func() (*wire.TransferResp, error), _ *wire.TransferReq) (*wire.TransferResp, error) {
				if n >= at {
					return nil, errCut
				}
				return next()
			})
			mv.failed(mv.settle(mv.handover(c)), wire.Code_UNAVAILABLE)
			mv.stayed(t, app, c, warm, live, "the connection broke")
		}))
	}
}

// TestTransferOfOneMessage: what is small costs one message, and when that is
// lost the log is asked at once.
func TestTransferOfOneMessage(t *testing.T) {
	w := newWorld(t, "a", "b")
	l := w.play(func(_ int, next func() (*wire.TransferResp, error), _ *wire.TransferReq) (*wire.TransferResp, error) {
		return next()
	})
	c := w.open("a", "s", false)
	mv := w.begin("s", "a", "b")
	warm := mv.invite(c)
	h := mv.wait(mv.handover(c))
	warm.pivoted(mv.m.GetSourceEpoch())
	if l.calls != 1 {
		t.Errorf("%d messages", l.calls)
	}
	// The director is told what connections the clients had.
	if list := h.resp.GetConnections(); len(list) != 1 || string(list[0].GetClient()) != string(c.instance) || list[0].GetAlpn() != "test/1" {
		t.Errorf("connections %v", list)
	}
}

// TestTransferDisordered: chunks overtake each other and come twice.
func TestTransferDisordered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, app, _, warm, mv, live := large(t)
		held := make(chan struct{})
		w.play(func(n int, next func() (*wire.TransferResp, error), _ *wire.TransferReq) (*wire.TransferResp, error) {
			switch n {
			case 1:
				<-held // the first to leave is the last of its window to arrive
			case migrate.TransferWindow:
				close(held)
			}
			resp, err := next()
			if n%2 == 0 {
				resp, err = next()
			}
			return resp, err
		})
		mv.moved(mv.settle(mv.handover(warm)))
		mv.arrivedWhole(t, app, warm, live)
	})
}

// TestTransferDamaged: a bit flipped in any chunk is found, told, and costs the
// move alone.
func TestTransferDamaged(t *testing.T) {
	for at := 1; at <= 6; at++ {
		t.Run(fmt.Sprintf("chunk %d", at), inBubble(func(t *testing.T) {
			w, app, c, warm, mv, live := large(t)
			w.play(func(n int, next func() (*wire.TransferResp, error), req *wire.TransferReq) (*wire.TransferResp, error) {
				if n == at {
					req.Sealed = slices.Clone(req.GetSealed())
					req.Sealed[len(req.Sealed)/2] ^= 1
				}
				return next()
			})
			mv.failed(mv.settle(mv.handover(c)), wire.Code_SNAPSHOT_BAD)
			mv.stayed(t, app, c, warm, live, "damaged on its way")
		}))
	}
}

// TestTransferOverTheCap: nothing is sent, and the log tells why.
func TestTransferOverTheCap(t *testing.T) {
	w, app, c, warm, mv, live := large(t)
	w.play(func(int, func() (*wire.TransferResp, error), *wire.TransferReq) (*wire.TransferResp, error) {
		t.Error("something was sent")
		return nil, errCut
	})
	over := live + strings.Repeat("x", wire.LiveBytesMax)
	app.set("s", over)
	mv.failed(mv.handover(c), wire.Code_SNAPSHOT_TOO_LARGE)
	mv.stayed(t, app, c, warm, over, "snapshot_too_large")
}

// TestTargetStartsAnewMidTransfer: what it had is gone with its incarnation.
func TestTargetStartsAnewMidTransfer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, app, c, warm, mv, live := large(t)
		w.play(func(n int, next func() (*wire.TransferResp, error), _ *wire.TransferReq) (*wire.TransferResp, error) {
			if n == 3 {
				res := w.register("b", mv.m.GetTarget().GetIncarnation())
				mv.to.SetIncarnation(res.GetEpoch())
				return nil, errCut
			}
			return next()
		})
		mv.failed(mv.settle(mv.handover(c)), wire.Code_TARGET_STALE)
		mv.stayed(t, app, c, warm, live, "target_stale")
	})
}

// TestTransferStopsWithItsMigration: called off, or past its deadline, in the
// middle of a cut.
func TestTransferStopsWithItsMigration(t *testing.T) {
	for name, end := range map[string]func(*move){
		"aborted": func(mv *move) { mv.abort() },
		"too late": func(mv *move) {
			mv.w.log.pass(2 * time.Hour)
			mv.w.must(&wire.Command{Kind: &wire.Command_Tick{Tick: &wire.Tick{}}})
		},
	} {
		t.Run(name, inBubble(func(t *testing.T) {
			w, app, c, warm, mv, live := large(t)
			want, why := wire.Code_MIGRATION_ENDED, "the test"
			if name == "too late" {
				want, why = wire.Code_DEADLINE_PASSED, "deadline"
			}
			w.play(func(n int, next func() (*wire.TransferResp, error), _ *wire.TransferReq) (*wire.TransferResp, error) {
				if n == 2 {
					end(mv)
				}
				if n > 1 {
					return nil, errCut
				}
				return next()
			})
			mv.failed(mv.settle(mv.handover(c)), want)
			mv.stayed(t, app, c, warm, live, why)
		}))
	}
}

// TestTransferToASilentTarget ends with its migration, too.
func TestTransferToASilentTarget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a", "b")
		called, silent := make(chan struct{}), make(chan struct{})
		defer close(silent)
		w.play(func(int, func() (*wire.TransferResp, error), *wire.TransferReq) (*wire.TransferResp, error) {
			close(called)
			<-silent
			return nil, errCut
		})
		c := w.open("a", "s", false)
		mv := w.begin("s", "a", "b")
		warm := mv.invite(c)
		ch := mv.handover(c)
		<-called
		mv.abort()
		mv.failed(mv.settle(ch), wire.Code_MIGRATION_ENDED)
		c.unfrozen()
		warm.bye(wire.Code_MIGRATION_ENDED)
		c.ok(c.write("incr", "n"), "1")
	})
}

// TestTransferWaitsForRoom at the target, which holds no more than its bound.
func TestTransferWaitsForRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, app, _, warm, mv, live := large(t)
		const others = arrivingBytesMax - largeLive/2
		if !mv.to.arriving.take(others) {
			t.Fatal("no room at all")
		}
		var refused atomic.Int32
		w.play(func(n int, next func() (*wire.TransferResp, error), _ *wire.TransferReq) (*wire.TransferResp, error) {
			resp, err := next()
			if wire.CodeOf(err) == wire.Code_OVERLOADED {
				if refused.Add(1) == migrate.TransferWindow {
					mv.to.arriving.give(others)
				}
			}
			return resp, err
		})
		mv.moved(mv.settle(mv.handover(warm)))
		mv.arrivedWhole(t, app, warm, live)
		if refused.Load() == 0 {
			t.Error("more came than there is room for")
		}
	})
}

// TestTransferOfAnotherCapture: when the row changed behind the snapshot, the
// next capture takes the place of the first, and what is late of that is refused.
func TestTransferOfAnotherCapture(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, app, c, warm, mv, live := large(t)
		pivot := w.log.hold(isPivot)
		late := make(chan error, 1)
		w.play(func(_ int, next func() (*wire.TransferResp, error), req *wire.TransferReq) (*wire.TransferResp, error) {
			if req.GetCapture() == 2 && req.GetOffset()+uint64(len(req.GetSealed())) == req.GetTotal() {
				old := proto.Clone(req).(*wire.TransferReq)
				old.Capture = 1
				_, err := mv.to.Transfer(context.Background(), old)
				late <- err
			}
			return next()
		})
		ch := mv.handover(c)
		p := pivot.next(t)
		w.must(&wire.Command{Kind: &wire.Command_Cancel{Cancel: &wire.Cancel{
			Session: "s", Epoch: mv.m.GetSourceEpoch(), Owner: mv.m.GetSource(), Client: c.instance, Seq: 1,
		}}})
		p.apply().answer()
		pivot.next(t).apply().answer()
		mv.moved(mv.settle(ch))
		warm.pivoted(mv.m.GetSourceEpoch())
		app.mu.Lock()
		defer app.mu.Unlock()
		if app.live["s"] != live || mv.to.arriving.used.Load() != 0 {
			t.Error("the live state did not come, or its room is still taken")
		}
		if err := <-late; wire.CodeOf(err) != wire.Code_RETRY {
			t.Errorf("a chunk of the first capture: %v", err)
		}
	})
}

// TestSealRotatedInMidTransfer: the snapshot names the generation of its key. The
// target opens with a former one; waits for one that it has not heard of; and
// refuses one that is gone, which costs the move alone.
func TestSealRotatedInMidTransfer(t *testing.T) {
	rotate := func(w *world, name string, generations ...uint64) {
		w.seals[name].set(generations...)
		w.workers[name].Observe([]store.Event{{Kind: store.EventKeys}})
	}
	t.Run("the target is ahead", inBubble(func(t *testing.T) {
		w, app, _, warm, mv, live := large(t)
		w.play(func(n int, next func() (*wire.TransferResp, error), _ *wire.TransferReq) (*wire.TransferResp, error) {
			if n == 3 {
				rotate(w, "b", 0, 1)
			}
			return next()
		})
		mv.moved(mv.settle(mv.handover(warm)))
		mv.arrivedWhole(t, app, warm, live)
	}))
	t.Run("the source is ahead", inBubble(func(t *testing.T) {
		w, app, _, warm, mv, live := large(t)
		rotate(w, "a", 0, 1)
		w.play(func(_ int, next func() (*wire.TransferResp, error), _ *wire.TransferReq) (*wire.TransferResp, error) {
			return next()
		})
		ch := mv.handover(warm)
		eventually(t, "the whole has arrived", func() bool {
			in := mv.to.expected(mv.m.GetId())
			in.mu.Lock()
			defer in.mu.Unlock()
			return in.pivots == 1
		})
		warm.silent()
		rotate(w, "b", 0, 1)
		mv.moved(mv.settle(ch))
		mv.arrivedWhole(t, app, warm, live)
	}))
	t.Run("the key is gone", inBubble(func(t *testing.T) {
		w, app, c, warm, mv, live := large(t)
		w.play(func(n int, next func() (*wire.TransferResp, error), _ *wire.TransferReq) (*wire.TransferResp, error) {
			if n == 3 {
				rotate(w, "b", 1)
			}
			return next()
		})
		mv.failed(mv.settle(mv.handover(c)), wire.Code_KEY_UNKNOWN)
		mv.stayed(t, app, c, warm, live, "key_unknown")
	}))
	t.Run("the target never hears of it", inBubble(func(t *testing.T) {
		w, app, c, warm, mv, live := large(t)
		rotate(w, "a", 0, 1)
		w.transfer = func(_ func(context.Context) (*wire.TransferResp, error), req *wire.TransferReq) (*wire.TransferResp, error) {
			ctx, cancel := context.WithCancel(context.Background())
			if req.GetOffset()+uint64(len(req.GetSealed())) == req.GetTotal() {
				cancel() // the call's time is over
			}
			defer cancel()
			return mv.to.Transfer(ctx, req)
		}
		h := mv.wait(mv.settle(mv.handover(c)))
		if h.err == nil {
			t.Fatalf("%v", h.resp)
		}
		mv.stayed(t, app, c, warm, live, "")
	}))
}
