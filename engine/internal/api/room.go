package api

import (
	"fmt"
	"net/http"

	"golang.org/x/sync/semaphore"
)

// Bodies is how many bytes of bodies are held at a time: each from its first byte until its
// request has ended. Decoded and as the backend gets it it takes as much again, twice.
const Bodies = 128 << 20

// unsaid is what a body is taken for that does not say its length.
const unsaid = 4 << 20

// hold takes room for a request's body of at most limit bytes, and returns what gives it back.
func hold(room *semaphore.Weighted, r *http.Request, limit int64) (free func(), failed *apiError) {
	size := r.ContentLength
	if size < 0 {
		size = unsaid
	}
	size = min(size, limit, Bodies)
	if !room.TryAcquire(size) {
		return nil, coded(http.StatusServiceUnavailable, serverError, "overloaded", fmt.Sprintf("the bodies of all requests are as large as they may be, %d MiB", Bodies>>20))
	}
	return func() { room.Release(size) }, nil
}
