package main

import "os"

// heapFloorBytes keeps a small node from collecting garbage all the time: the
// collector runs when the heap has doubled, and an idle node's is a few
// megabytes, which a busy one fills several times a second. It is counted
// twice over, so a node takes up to that much more memory; to a large heap it
// is nothing.
const heapFloorBytes = 64 << 20

// heapFloor is never written to, so it takes no memory but for what it lets
// the heap grow by.
var heapFloor []byte

// raiseHeapFloor does so unless the operator has a setting of their own.
func raiseHeapFloor() {
	if os.Getenv("GOGC") == "" && os.Getenv("GOMEMLIMIT") == "" {
		heapFloor = make([]byte, heapFloorBytes)
	}
}
