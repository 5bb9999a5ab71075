package matrix

import (
	"fmt"
	"os"
)

// debug, with MATRIX_DEBUG set, tells what the client sees and when. It is meant
// for one cell at a time.
var debug = os.Getenv("MATRIX_DEBUG") != ""

func (w *world) logf(format string, args ...any) {
	if debug {
		fmt.Printf("%v "+format+"\n", append([]any{w.now()}, args...)...)
	}
}
