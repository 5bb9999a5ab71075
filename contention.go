package baton

import (
	"net/http"
	"net/http/pprof"
	"runtime"
	"sync"
)

// How closely waits are looked at while somebody asks for them.
const (
	// blockRateNS: a wait as long as this is recorded, of shorter ones a share.
	blockRateNS = 10_000
	// mutexShare: one in so many waits for mutexes is recorded.
	mutexShare = 10
)

// contention counts the requests for profiles of waits. Waits are recorded only
// while there is one, as every wait then costs more; the settings are the
// process's.
var contention struct {
	mu       sync.Mutex
	requests int
	before   int // the share of mutexes that whoever embeds the node has set
}

// serveContention serves the profile "block" or "mutex" of the seconds asked for.
func serveContention(profile string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("seconds") == "" {
			http.Error(w, "say for how long, as waits are recorded only meanwhile: ?seconds=5", http.StatusBadRequest)
			return
		}
		recordContention(1)
		defer recordContention(-1)
		pprof.Handler(profile).ServeHTTP(w, r)
	}
}

func recordContention(more int) {
	c := &contention
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.requests
	c.requests += more
	switch {
	case was == 0:
		c.before = runtime.SetMutexProfileFraction(mutexShare)
		runtime.SetBlockProfileRate(blockRateNS)
	case c.requests == 0:
		runtime.SetMutexProfileFraction(c.before)
		runtime.SetBlockProfileRate(0)
	}
}
