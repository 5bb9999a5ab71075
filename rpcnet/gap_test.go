package rpcnet

import (
	"bytes"
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/baton-cluster/baton/wire"
)

func attachedWith(epoch, pushNext uint64) *wire.ServerFrame {
	f := attachedFrame("a", epoch)
	f.GetAttached().PushNext = pushNext
	return f
}

// missed feeds frames of one route to a core and returns what each push that
// came out says to be missing before it.
func missed(t *testing.T, frames ...*wire.ServerFrame) (out []uint64) {
	t.Helper()
	s := newScript(t, nil)
	s.start()
	s.opened(1)
	for _, f := range frames {
		s.c.frame(s.now, 1, f)
		for _, a := range s.c.take() {
			if a.kind == actPush {
				out = append(out, a.push.Missed)
			}
		}
	}
	return out
}

func TestGapsInPushesAreSeen(t *testing.T) {
	for _, tc := range []struct {
		name   string
		frames []*wire.ServerFrame
		want   []uint64
	}{
		{"none", []*wire.ServerFrame{attachedWith(5, 1), pushFrame(1, 5), pushFrame(2, 5), pushFrame(3, 5)}, []uint64{0, 0, 0}},
		{"within an epoch", []*wire.ServerFrame{attachedWith(5, 1), pushFrame(1, 5), pushFrame(4, 5), pushFrame(5, 5)}, []uint64{0, 2, 0}},
		{"across a change of owner", []*wire.ServerFrame{attachedWith(5, 1), pushFrame(1, 5), attachedWith(6, 4), pushFrame(3, 6), pushFrame(4, 6)}, []uint64{0, 1, 0}},
		{"repeated by the next owner", []*wire.ServerFrame{attachedWith(5, 1), pushFrame(1, 5), pushFrame(2, 5), attachedWith(6, 3), pushFrame(1, 6), pushFrame(2, 6), pushFrame(3, 6)}, []uint64{0, 0, 0}},
		{"the first push since the client attached", []*wire.ServerFrame{attachedWith(5, 8), pushFrame(9, 5)}, []uint64{1}},
		{"nothing taken, and then another owner", []*wire.ServerFrame{attachedWith(5, 8), attachedWith(6, 12), pushFrame(12, 6)}, []uint64{4}},
		{"what the session held before is no gap", []*wire.ServerFrame{attachedWith(5, 8), pushFrame(6, 5), pushFrame(7, 5), pushFrame(8, 5)}, []uint64{0, 0, 0}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := missed(t, tc.frames...); !slices.Equal(got, tc.want) {
				t.Errorf("missing before each push: %v, want %v", got, tc.want)
			}
		})
	}
}

// A gap is told before the push after it, and where nobody listens it is logged.
func TestGapIsTold(t *testing.T) {
	var mu sync.Mutex
	var log bytes.Buffer
	cl := newFakeCluster(t, 1, nil)
	c := dialFake(t, func(cfg *ClientConfig) {
		cfg.Log = slog.New(slog.NewTextHandler(lockedWriter{&mu, &log}, nil))
	}, cl.nodes...)
	s := openFake(t, c, "a")
	events := make(chan any, 8)
	s.OnGap(func(g Gap) { events <- g })
	s.OnPush(func(p Push) { events <- p.Seq })
	push := func(seq uint64) {
		cl.mu.Lock()
		defer cl.mu.Unlock()
		_ = cl.at.Send(pushFrame(seq, cl.epoch))
	}
	push(1)
	push(4)
	for _, want := range []any{uint64(1), Gap{From: 2, To: 3, Epoch: s.Epoch()}, uint64(4)} {
		if got := <-events; got != want {
			t.Fatalf("the application was told %v, want %v", got, want)
		}
	}
	s.OnGap(nil)
	push(6)
	if got := <-events; got != uint64(6) {
		t.Fatalf("the application was told %v", got)
	}
	mu.Lock()
	logged := log.String()
	mu.Unlock()
	if !strings.Contains(logged, "from=5 to=5") {
		t.Errorf("the gap was passed over: %q", logged)
	}
	if _, err := s.Call(context.Background(), "w", []byte("on")); err != nil {
		t.Errorf("the session does not go on: %v", err)
	}
}

type lockedWriter struct {
	mu *sync.Mutex
	b  *bytes.Buffer
}

func (w lockedWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}
