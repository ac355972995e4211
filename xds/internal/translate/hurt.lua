-- Runs at each try of a request, and ends the tries after the second engine that the
-- request hurt: one that answered 500, lost its backend over it, or ended the connection
-- without an answer. A connection that was refused hurts nobody, nor does a try whose time
-- was over, which may still be answered; 429 and 503 are of engines that have too much to do.
local kept = "millrace.tries"

local function recall(try)
  local all = try:streamInfo():dynamicMetadata():get(kept)
  return all and all.last or {sent = 0, received = 0, hurt = 0, unanswered = 0}
end

local function keep(try, tries)
  try:streamInfo():dynamicMetadata():set(kept, "last", tries)
end

-- What was sent since the try before, with nothing received, was not answered.
function envoy_on_request(try)
  local headers = try:headers()
  local sent, received = string.match(headers:get("x-millrace-tries") or "", "(%d+) (%d+)")
  headers:remove("x-millrace-tries")
  local attempt = headers:get("x-envoy-attempt-count")
  if not sent or not attempt or attempt == "1" then
    return
  end
  sent, received = tonumber(sent), tonumber(received)
  local tries = recall(try)
  local timeout = headers:get("x-envoy-is-timeout-retry")
  if sent > tries.sent and received == tries.received and timeout ~= "true" then
    tries.hurt, tries.unanswered = tries.hurt + 1, tries.unanswered + 1
  end
  tries.sent, tries.received = sent, received
  keep(try, tries)
  if tries.hurt < 2 then
    return
  end
  local message = "the request was sent to two engines, which ended the connection without an answer or failed at it: it is not sent to another one"
  local path, form = headers:get(":path") or "", '{"error":{"message":"%s","type":"server_error","param":null,"code":"engines_lost"}}'
  if string.find(path, "/messages", 1, true) then
    form = '{"type":"error","error":{"type":"api_error","message":"%s"}}'
  end
  try:respond({
    [":status"] = "502", ["content-type"] = "application/json", ["x-should-retry"] = "false",
    ["x-envoy-attempt-count"] = tostring(tonumber(attempt) - 1), ["x-millrace-unanswered"] = tostring(tries.unanswered),
  }, string.format(form, message))
end

function envoy_on_response(try)
  local headers = try:headers()
  local status, lost = headers:get(":status"), headers:get("x-millrace-lost")
  if status ~= "500" and not lost then
    return
  end
  local tries = recall(try)
  tries.hurt = tries.hurt + 1
  if lost then
    tries.unanswered = tries.unanswered + 1
  end
  keep(try, tries)
  if tries.hurt >= 2 then
    headers:replace("x-envoy-ratelimited", "true")
    headers:replace("x-millrace-unanswered", tostring(tries.unanswered))
  end
end
