package cluster

import (
	"fmt"
	"log"
	"os"
)

// stdlogThief is the writer that raft-wal's file library brings along: when its
// package is initialised it takes the standard logger away from the program that
// links it, and under an init system sends its lines to the journal.
const stdlogThief = "capnslog.packageWriter"

// init gives the standard logger back, as it is in any other program. It runs
// after the library's, which this package imports, and before the program's own
// main package, whose settings stand.
func init() {
	if fmt.Sprintf("%T", log.Writer()) == stdlogThief {
		log.SetOutput(os.Stderr)
		log.SetFlags(log.LstdFlags)
	}
}
