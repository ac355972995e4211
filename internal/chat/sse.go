package chat

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// maxEvent bounds one line of the stream, in bytes.
const maxEvent = 1 << 20

// chunk is what we read of one event of a streamed chat completion.
type chunk struct {
	Choices []struct {
		Delta struct {
			Content string `json:"content"`
		} `json:"delta"`
		FinishReason string `json:"finish_reason"`
	} `json:"choices"`
	Usage *usage    `json:"usage"`
	Error *apiError `json:"error"`
}

// usage counts tokens; the last event carries it.
type usage struct {
	Prompt     int `json:"prompt_tokens"`
	Completion int `json:"completion_tokens"`
	Details    struct {
		Cached int `json:"cached_tokens"`
	} `json:"prompt_tokens_details"`
}

// apiError is an error in OpenAI's form.
type apiError struct {
	Message string `json:"message"`
	Code    any    `json:"code"`
}

func (e *apiError) Error() string { return e.Message }

// errCut is returned for a stream that ended before its last event.
var errCut = errors.New("the answer was cut off")

// readEvents gives each chunk of a server-sent stream to use, until [DONE].
func readEvents(r io.Reader, use func(chunk)) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 4096), maxEvent)
	for lines.Scan() {
		data, ok := bytes.CutPrefix(lines.Bytes(), []byte("data:"))
		if !ok {
			continue // comments, event names, the empty line between events
		}
		if data = bytes.TrimSpace(data); string(data) == "[DONE]" {
			return nil
		}
		var c chunk
		if err := json.Unmarshal(data, &c); err != nil {
			return fmt.Errorf("event %.100q: %w", data, err)
		}
		if c.Error != nil {
			return c.Error
		}
		use(c)
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("%w: %w", errCut, err)
	}
	return errCut
}
