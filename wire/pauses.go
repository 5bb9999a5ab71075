package wire

import "math/bits"

// Pauses are counted in buckets whose width is an eighth of their length or
// less, so that a job of a million moves keeps its quantiles in a few dozen
// numbers. The buckets are part of the log's format.
const pauseSubBits = 3

// PauseIndex is the bucket of a pause in microseconds.
func PauseIndex(us uint64) uint32 {
	if us < 2<<pauseSubBits {
		return uint32(us)
	}
	shift := uint(bits.Len64(us)) - pauseSubBits - 1
	return uint32(shift<<pauseSubBits) + uint32(us>>shift)
}

// PauseBound is the longest pause of a bucket, in microseconds.
func PauseBound(index uint32) uint64 {
	if index < 2<<pauseSubBits {
		return uint64(index)
	}
	shift := uint(index>>pauseSubBits) - 1
	top := uint64(index) - uint64(shift<<pauseSubBits)
	return (top+1)<<shift - 1
}

// PauseQuantile is the length, in microseconds, that the share q (0 to 1) of a
// job's counted pauses does not exceed, never below the true one by more than
// the width of its bucket. 0 where none is counted.
func PauseQuantile(j *Job, q float64) uint64 {
	var total uint64
	for _, b := range j.GetPauses() {
		total += b.GetCount()
	}
	if total == 0 {
		return 0
	}
	left := uint64(q * float64(total))
	for _, b := range j.GetPauses() {
		if left < b.GetCount() {
			return min(PauseBound(b.GetIndex()), j.GetPauseMaxUs())
		}
		left -= b.GetCount()
	}
	return j.GetPauseMaxUs()
}
