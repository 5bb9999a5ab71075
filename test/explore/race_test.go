//go:build race

package explore

// raced: the race detector slows a search down tenfold, and a small one shows it
// all that a large one would.
const raced = true
