package baton

import (
	"context"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync"
	"testing"
)

// Waits are recorded from the first request for a profile of them to the end of
// the last, and not without one.
func TestContentionIsRecordedWhileAsked(t *testing.T) {
	share := func() int { return runtime.SetMutexProfileFraction(-1) }
	before := share()
	ask := func(query string) (end func() int) {
		ctx, cancel := context.WithCancel(t.Context())
		rec := httptest.NewRecorder()
		var done sync.WaitGroup
		req := httptest.NewRequestWithContext(ctx, http.MethodGet, "/debug/pprof/mutex"+query, nil)
		done.Go(func() { serveContention("mutex")(rec, req) })
		return func() int {
			cancel()
			done.Wait()
			return rec.Code
		}
	}
	if code := ask("")(); code != http.StatusBadRequest {
		t.Errorf("without a time: %d", code)
	}
	first, second := ask("?seconds=600"), ask("?seconds=600")
	recording := func(n int) func() bool {
		return func() bool {
			contention.mu.Lock()
			defer contention.mu.Unlock()
			return contention.requests == n && share() == mutexShare
		}
	}
	for both := recording(2); !both(); { // the test's own limit ends what hangs
		runtime.Gosched()
	}
	first()
	if !recording(1)() {
		t.Error("nothing is recorded any more, though one still asks")
	}
	second()
	if got := share(); got != before {
		t.Errorf("after the last the share is %d, was %d", got, before)
	}
}
