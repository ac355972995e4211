package dialect

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"millrace.dev/millrace/engine/internal/backend"
)

// Mode is whether a request has functions called.
type Mode string

// Modes, as the API names them.
const (
	Never    Mode = "none"
	Perhaps  Mode = "auto"
	Required Mode = "required"
)

// Function is one that may be called.
type Function struct {
	Name        string          `json:"name"`
	Description string          `json:"description,omitempty"`
	Parameters  json.RawMessage `json:"parameters,omitempty"`
}

// Calls are the functions of a request that may be called, and whether one must be.
type Calls struct {
	Mode      Mode
	Functions []Function        // those that may be called
	tools     []json.RawMessage // the same
	named     bool              // whether tool_choice is an object
	single    bool              // whether it names one function
}

// ReadCalls reads tools and tool_choice; nil: there are none.
func ReadCalls(f map[string]json.RawMessage) (*Calls, *backend.Error) {
	var tools []json.RawMessage
	if backend.Given(f, "tools") && json.Unmarshal(f["tools"], &tools) != nil {
		return nil, backend.Refuse("tools", "must be a list of objects")
	}
	c := &Calls{Mode: Perhaps, tools: tools}
	for i, raw := range tools {
		var tool struct {
			Type     string   `json:"type"`
			Function Function `json:"function"`
		}
		switch at := fmt.Sprintf("tools[%d]", i); {
		case json.Unmarshal(raw, &tool) != nil:
			return nil, backend.Refuse(at, "must be an object that describes a function")
		case tool.Type != "function":
			return nil, backend.Refuse(at+".type", "%.40q; only functions can be called here", tool.Type)
		case tool.Function.Name == "":
			return nil, backend.Refuse(at+".function.name", "is missing")
		}
		c.Functions = append(c.Functions, tool.Function)
	}
	if fault := c.choose(f); fault != nil {
		return nil, fault
	}
	if len(tools) == 0 {
		if c.Mode == Required || c.named {
			return nil, backend.Refuse("tool_choice", "there are no tools")
		}
		return nil, nil
	}
	return c, nil
}

// choose reads tool_choice.
func (c *Calls) choose(f map[string]json.RawMessage) *backend.Error {
	raw := f["tool_choice"]
	if !backend.Given(f, "tool_choice") {
		return nil
	}
	type named struct {
		Type     string `json:"type"`
		Function struct {
			Name string `json:"name"`
		} `json:"function"`
	}
	var choice struct {
		named
		Allowed struct {
			Mode  Mode    `json:"mode"`
			Tools []named `json:"tools"`
		} `json:"allowed_tools"`
	}
	if json.Unmarshal(raw, &c.Mode) == nil {
		if c.Mode != Never && c.Mode != Perhaps && c.Mode != Required {
			return backend.Refuse("tool_choice", "%.40q; must be none, auto, required or an object", c.Mode)
		}
		return nil
	}
	if json.Unmarshal(raw, &choice) != nil {
		return backend.Refuse("tool_choice", "must be a string or an object")
	}
	c.named = true
	switch choice.Type {
	case "function":
		c.Mode, c.single = Required, true
		return c.only("tool_choice.function.name", choice.Function.Name)
	case "allowed_tools":
		if c.Mode = choice.Allowed.Mode; c.Mode != Perhaps && c.Mode != Required {
			return backend.Refuse("tool_choice.allowed_tools.mode", "%.40q; must be auto or required", c.Mode)
		}
		names := make([]string, len(choice.Allowed.Tools))
		for i, t := range choice.Allowed.Tools {
			names[i] = t.Function.Name
		}
		return c.only("tool_choice.allowed_tools.tools", names...)
	}
	return backend.Refuse("tool_choice.type", "%.40q; must be function or allowed_tools", choice.Type)
}

// only keeps the functions of these names.
func (c *Calls) only(at string, names ...string) *backend.Error {
	var tools []json.RawMessage
	var functions []Function
	for _, name := range names {
		i := slices.IndexFunc(c.Functions, func(f Function) bool { return f.Name == name })
		if i < 0 {
			return backend.Refuse(at, "%.60q is none of the tools", name)
		}
		tools, functions = append(tools, c.tools[i]), append(functions, c.Functions[i])
	}
	c.tools, c.Functions = tools, functions
	return nil
}

// Apply has a request say it without names, and reports whether that differs: the functions
// that may not be called are left out.
func (c *Calls) Apply(r *backend.Request) bool {
	if !c.named {
		return false
	}
	r.Fields = maps.Clone(r.Fields)
	r.Fields["tools"], r.Fields["tool_choice"] = backend.Encode(c.tools), backend.Encode(c.Mode)
	return true
}

// Single reports whether the request names the one function that must be called.
func (c *Calls) Single() bool { return c.single }
