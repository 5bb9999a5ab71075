package main

import (
	"os"
	"slices"
	"strings"
)

// Go's runtime has a thread that looks for processors stuck in system calls. It
// sleeps when the program has nothing to run, and at the first system call after
// that looks every 20 µs for a while. A node runs dry after every few requests,
// so that this thread took a sixth to a quarter of a node's processor time and
// half of its switches between threads. While a trace of the scheduler is asked
// for it does not sleep, and so slows down to a look in 10 ms and stays there: 100
// short looks a second, idle or not. So a trace is asked for, as seldom as can be:
// a line on standard error every 24 days.
//
// What those looks are for is to give a stuck call's processor to others, which
// now may take 20 ms. The calls that last are those to the disk, of which a node
// has one at a time: so where there is one processor only, the runtime is told of
// a second one. (Anywhere else one more cost half of what is saved here.)
const (
	debugVar    = "GODEBUG"
	calmSetting = "schedtrace=2147483647" // ms, the most there is
)

// calmEnv returns env with the monitor calmed, and false if whoever set env has
// decided about traces.
func calmEnv(env []string) ([]string, bool) {
	calm := debugVar + "=" + calmSetting
	env = slices.Clone(env)
	i := slices.IndexFunc(env, func(s string) bool { return strings.HasPrefix(s, debugVar+"=") })
	switch {
	case i < 0:
		return append(env, calm), true
	case strings.Contains(env[i], "schedtrace="):
		return env, false
	}
	if have := strings.TrimPrefix(env[i], debugVar+"="); have != "" {
		calm += "," + have
	}
	env[i] = calm
	return env, true
}

// calmMonitor starts this process over with its monitor calmed, as the runtime
// reads the setting only then. It returns in the process that has it, in one that
// was told otherwise, and where it cannot be: then all works, and costs more.
func calmMonitor() {
	if env, calm := calmEnv(os.Environ()); calm {
		startOver(env)
	}
}

// calmed reports whether this process's monitor is calm.
func calmed() bool { return strings.Contains(os.Getenv(debugVar), calmSetting) }
